"""Folders that outlive a process: where runs are stored, and what is in them."""

import os
from pathlib import Path

from mst.checkpoint import verify
from mst.config import Config
from mst.errors import CheckpointError, ConfigError
from mst.model.weights import HUB

PROJECT = Path(__file__).resolve().parent.parent


def absolute(path: str) -> str:
    """Make a path absolute, for workers whose working directory is another.

    Raises:
        ConfigError: the path is no local one; or it is relative, and this is the copy of the project that a
            Ray job runs in.
    """
    if "://" in path:
        raise ConfigError(f"'{path}' is no path of a local or mounted folder")
    if not Path(path).is_absolute():
        check_outlives_job(f"the path '{path}' is relative")
    return os.path.normpath(Path(path).absolute())


def check_outlives_job(what: str) -> None:
    """Refuse to store beside this file when Ray will delete it with the job.

    Raises:
        ConfigError: this is a job's copy of the project; `what` begins the message.
    """
    if "runtime_resources" in PROJECT.parts:
        raise ConfigError(
            f"{what}, but a Ray job runs in a copy of the project that Ray deletes; name a place outside it"
        )


def absolute_paths(config: Config) -> Config:
    """Return a config whose data root, cache and initial weights are absolute; a root may lie in a store."""
    root, cache = config.data.root, config.data.cache
    data = config.data.model_copy(
        update={"root": root if "://" in root else absolute(root), "cache": cache and absolute(cache)}
    )
    init = config.train.init
    if init and not init.startswith(HUB):
        init = absolute(init)
    train = config.train.model_copy(update={"init": init})
    return config.model_copy(update={"data": data, "train": train})


def newest_checkpoint(run_folder: Path) -> Path | None:
    """Return the last whole checkpoint of a run; None for a run that has none."""
    for folder in sorted(run_folder.glob("epoch_*"), reverse=True):
        try:
            verify(folder)
        except CheckpointError:
            continue  # the run ended while it was being written
        return folder
    return None


def best_checkpoint(run_folder: Path) -> Path:
    """Return the checkpoint of a run that scored best in validation.

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """
    scores = {}
    for folder in run_folder.glob("epoch_*"):
        try:
            scores[folder] = verify(folder)["metrics"]["val_score"]
        except CheckpointError:
            continue
    if not scores:
        raise CheckpointError(f"{run_folder}: no whole checkpoint in it")
    return max(scores, key=lambda folder: (scores[folder], folder.name))


def epochs_done(checkpoint: Path) -> int:
    """Return how many epochs a run's checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("epoch_"))


def checkpoint_name(epochs: int) -> str:
    """Name the checkpoint folder after `epochs` epochs, so that names sort by age."""
    return f"epoch_{epochs:05d}"
