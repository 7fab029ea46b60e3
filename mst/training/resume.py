"""How a training begins: from its initial weights, or where it was."""

import logging
import math

import torch
from upath import UPath

from mst.checkpoint import load_training_state
from mst.config import Config
from mst.data.cache import reader
from mst.data.files import as_path, check_writable
from mst.data.sampling.training_set import TrainingSet
from mst.data.sources import SampleSet, read_records, read_samples
from mst.errors import ConfigError
from mst.optim import learning_rate
from mst.overrides import differences, override
from mst.training.checkpoints import Saved, config_of_run, newest, on_this_machine
from mst.training.state import TrainingState, new_state

_log = logging.getLogger(__name__)

_FIXED = ("model.", "train.batch_size", "train.samples_per_epoch")
"""Settings that weights and the count of steps depend on."""


def is_fixed(name: str) -> bool:
    """Whether a setting cannot change in mid-training."""
    return name.startswith(_FIXED)


def check_run(run: UPath, config: Config, *, allow_change: bool) -> tuple[Saved | None, list[str]]:
    """Look at what is there of a run before it is begun or gone on with.

    Args:
        run: folder of the run.
        config: of the experiment that is asked for.
        allow_change: whether a run may go on with other settings than it began with.

    Returns:
        The checkpoint to go on from, None for a new run; and a line for each setting that is another now.

    Raises:
        ConfigError: the run has other settings, and must not change or cannot change them.
        DataError: the folder cannot be written, or its store does not answer.
    """
    check_writable(run)
    found = newest(run)
    if found is None:
        return None, []
    before = config_of_run(found.path)
    changed = differences(before, config)
    cannot = any(is_fixed(each) for each in changed)
    if changed and (cannot or not allow_change):
        hint = "" if cannot else ", or go on with these by --allow-config-change"
        raise ConfigError(
            f"run '{run.name}' was started with other settings ({'; '.join(changed)}); "
            f"give this one another name{hint}"
        )
    old, new = (_rate(found.step, each) for each in (before, config))
    if changed and not math.isclose(old, new, rel_tol=0.01):
        changed.append(f"learning rate of step {found.step}: {old:.3g} -> {new:.3g}")
        _log.warning("%s: %s", run.name, changed[-1])
    return found, changed


def _rate(step: int, config: Config) -> float:
    return learning_rate(step, config.train.steps_per_epoch, config.train.epochs, config.optim)


def start(config: Config, checkpoint: UPath | None, device: torch.device) -> tuple[TrainingState, str]:
    """Make the state of a training, new or as a checkpoint has it, and a line that says which.

    Raises:
        CheckpointError: the checkpoint is damaged, or the weights to start from cannot be read or do not fit.
        DataError: the checkpoint's store does not answer.
    """
    if checkpoint is None:
        return new_state(config, device)
    state, _ = new_state(override(config, {"train.init": None}), device)  # `init` may be gone by now
    with on_this_machine(checkpoint) as folder:
        state.load_state_dict(load_training_state(folder))
    return state, f"resumed after step {state.step} of {config.train.steps}"


def read_data(config: Config) -> tuple[TrainingSet, SampleSet]:
    """Return an experiment's training set and its validation objects.

    Raises:
        ConfigError, DataError: a source is wrong, or cannot be read.
    """
    root, fetch = as_path(config.data.root), reader(config.data.cache, config.data.cache_gb)
    training_set = TrainingSet(
        read_records(config.data.train, root, max_faulty=config.data.max_faulty), config, fetch
    )
    return training_set, read_samples(config.data.val, root, fetch, max_faulty=config.data.max_faulty)
