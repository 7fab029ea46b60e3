"""The checkpoints of one run, in a folder or in S3: the newest and the best whole ones, and no other.

A run's folder holds a folder `step_00001000` for each checkpoint, as `mst.checkpoint` describes it. Its
manifest is written last and removed first: at any moment a checkpoint is whole, or it is not there.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from mst.checkpoint import CONFIG, MANIFEST, VALIDATION, read_config, save_checkpoint, verify
from mst.config import Config
from mst.data.files import download, fetch, is_remote, names, remove, upload
from mst.errors import CheckpointError
from mst.evaluation import ObjectRecord
from mst.training.loop import EpochReport, StepReport
from mst.training.state import TrainingState

_log = logging.getLogger(__name__)

_PREFIX, _PART = "step_", ".part"


class Saved(NamedTuple):
    """A checkpoint as its manifest describes it."""

    path: UPath
    step: int
    """Steps behind it."""
    metrics: dict[str, float]
    """Of the validation there; empty where there was none."""
    is_finished: bool
    """Whether the training ended with it."""
    run_id: str | None
    """Of the training in the experiment tracker."""

    @property
    def score(self) -> float:
        """Of the validation; lowest where there was none."""
        return self.metrics.get("val_score", float("-inf"))


class ValidatedObject(NamedTuple):
    """What a validation found of one object."""

    name: str
    image_id: str
    ious: tuple[float, ...]
    """After each click; fewer where the highest target was reached."""


def save(
    run: UPath,
    state: TrainingState,
    config: Config,
    metrics: Mapping[str, float],
    records: Sequence[ObjectRecord] | None = None,
) -> Saved:
    """Write a checkpoint, and remove those that it makes superfluous (`train.keep`).

    Args:
        run: folder of the run; made where it is missing.
        state: of the training.
        config: of the experiment.
        metrics: of the validation that has just been, if one has.
        records: of its objects.

    Raises:
        OSError, DataError: the folder cannot be written; what was there is there still.
    """
    name = f"{_PREFIX}{state.step:08d}"
    done = Saved(run / name, state.step, dict(metrics), state.is_finished(config), state.run_id)
    with _staging(run, name) as staged:
        save_checkpoint(
            staged,
            state.weights(),
            config,
            training_state=state.state_dict(),
            validation=None if records is None else [_plain(each) for each in records],
            metrics=metrics,
            progress={"step": done.step, "is_finished": done.is_finished, "run_id": done.run_id},
        )
        _publish(staged, run / name)
    _prune(run, state.step, config.train.keep)
    return done


def save_report(run: UPath, state: TrainingState, config: Config, report: StepReport | EpochReport) -> Saved:
    """Write the checkpoint that a report of the training asks for; arguments as of `save`."""
    if isinstance(report, EpochReport):
        return save(run, state, config, report.metrics, report.records)
    return save(run, state, config, {})


def _plain(record: ObjectRecord) -> dict[str, Any]:
    return ValidatedObject(record.name, record.image_id, record.ious)._asdict()


def validated_objects(checkpoint: UPath) -> list[ValidatedObject]:
    """Return what the validation of a checkpoint found of each object, in the order of their names.

    Raises:
        CheckpointError: there was none, or it did not keep its objects.
    """
    try:
        found = json.loads(fetch(checkpoint / VALIDATION))
    except FileNotFoundError:
        raise CheckpointError(f"{checkpoint}: no {VALIDATION}, so no figures of each object") from None
    return sorted(ValidatedObject(each["name"], each["image_id"], tuple(each["ious"])) for each in found)


def adopt(run: UPath, checkpoint: UPath) -> None:
    """Let a run go on from the checkpoint of another one: it is copied, the run's own from there on removed.

    In the experiment tracker the run stays itself. No other process may write to its folder now.

    Args:
        run: folder of the run; made where it is missing.
        checkpoint: of another run with the same network.

    Raises:
        CheckpointError: the checkpoint is damaged or gone.
        DataError: a store does not answer.
    """
    with on_this_machine(checkpoint) as folder, _staging(run, checkpoint.name) as staged:
        shutil.copytree(folder, staged, dirs_exist_ok=True)
        manifest = json.loads((staged / MANIFEST).read_bytes())
        manifest["progress"]["run_id"] = None
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for each in saved(run):
            if each.step >= manifest["progress"]["step"]:
                _remove(each.path)
        _publish(staged, run / checkpoint.name)


def saved(run: UPath) -> list[Saved]:
    """List the checkpoints of a run that have a manifest, oldest first; other files may be damaged yet.

    Raises:
        DataError: the folder's store does not answer.
    """
    found = []
    for name in sorted(each for each in names(run) if each.startswith(_PREFIX)):
        try:
            manifest = json.loads(fetch(run / name / MANIFEST))
            found.append(Saved(run / name, metrics=manifest["metrics"], **manifest["progress"]))
        except FileNotFoundError:
            continue  # the run ended while it was being written or removed
        except (ValueError, KeyError, TypeError):
            _log.warning("passed over: %s: damaged", run / name / MANIFEST)
    return found


def newest(run: UPath) -> Saved | None:
    """Return the last whole checkpoint of a run; damaged ones are passed over with a warning.

    Raises:
        DataError: the folder's store does not answer.
    """
    return _last_whole(run, lambda each: (each.step,))


def best(run: UPath) -> Saved:
    """Return the whole checkpoint of a run that scored best in validation.

    Raises:
        CheckpointError: the run has no validated one.
        DataError: the folder's store does not answer.
    """
    found = _last_whole(run, lambda each: (each.score, each.step))
    if found is None or not found.metrics:
        raise CheckpointError(f"{run}: no whole checkpoint with a validation in it")
    return found


@contextmanager
def on_this_machine(checkpoint: UPath) -> Iterator[Path]:
    """Give the folder of a checkpoint on this machine as long as the block runs.

    Raises:
        CheckpointError: there is none, or it is damaged.
        DataError: its store does not answer.
    """
    if not is_remote(checkpoint):
        verify(Path(str(checkpoint)))
        yield Path(str(checkpoint))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / checkpoint.name
        copy.mkdir()
        for name in names(checkpoint):
            download(checkpoint / name, copy / name)
        verify(copy)
        yield copy


def config_of_run(checkpoint: UPath) -> Config:
    """Read the settings of a checkpoint, without its other files.

    Raises:
        CheckpointError: they are damaged or written by another version of the settings.
        OSError, DataError: they are not there, or their store does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        download(checkpoint / CONFIG, Path(folder) / CONFIG)
        return read_config(Path(folder))


def remove_unfinished(run: UPath) -> None:
    """Remove what killed processes left in a run's folder; no other process may write to it now."""
    for name in names(run):
        is_orphan = name.startswith(_PREFIX) and MANIFEST not in names(run / name)
        if is_orphan or name.endswith(_PART):
            _log.warning("removed, since it was never finished: %s", run / name)
            remove(run / name)


def _last_whole(run: UPath, order: Callable[[Saved], tuple[float, ...]]) -> Saved | None:
    there = saved(run)
    for each in sorted(there, key=order, reverse=True):
        try:
            with on_this_machine(each.path):
                return each
        except (CheckpointError, FileNotFoundError) as error:
            _log.warning("passed over: %s", error)
    # All that was there may have made way for a newer one meanwhile.
    return None if saved(run) == there else _last_whole(run, order)


@contextmanager
def _staging(run: UPath, name: str) -> Iterator[Path]:
    """A folder to write a checkpoint in: beside where it goes, or on this machine if that is elsewhere."""
    if is_remote(run):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    staged = Path(str(run), f".{name}{_PART}")
    remove(UPath(staged))
    try:
        yield staged
    finally:
        remove(UPath(staged))


def _publish(staged: Path, checkpoint: UPath) -> None:
    """Bring a whole checkpoint to its place; a damaged one of this name makes way."""
    _remove(checkpoint)
    if not is_remote(checkpoint):
        staged.rename(str(checkpoint))
        return
    for file in sorted(staged.iterdir(), key=lambda file: file.name == MANIFEST):
        upload(file, checkpoint / file.name)


def _prune(run: UPath, step: int, keep: int) -> None:
    """Keep the newest up to `step`, and the best; of those beyond, a run that fell back writes new ones."""
    there = [each for each in saved(run) if each.step <= step]
    best_there = max(there, key=lambda each: (each.score, each.step))
    for each in there[:-keep]:
        if each is not best_there:
            _remove(each.path)


def _remove(checkpoint: UPath) -> None:
    remove(checkpoint / MANIFEST)
    remove(checkpoint)
