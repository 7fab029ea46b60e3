"""Train one experiment over Ray workers.

    python pipelines/train.py --recipe demo --num-workers 2
    ray job submit --working-dir . -- python pipelines/train.py --recipe real_small --storage /runs ...

A run that is started again under the same name goes on from its last checkpoint.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from upath import UPath

from mst.checkpoint import initialize, load_training_state, read_config, save_checkpoint
from mst.config import Config, differences, from_dict, override
from mst.data.cache import reader
from mst.data.sampler import Shard
from mst.data.sources import check_sources, read_records, read_samples
from mst.data.training_set import TrainingSet
from mst.errors import ConfigError, MSTError
from mst.model import MST
from mst.training import EpochReport, StepReport, TrainingState, fit, new_state, validation_share
from pipelines.cluster import connect
from pipelines.command_line import add_settings, config_of, count, parse, run
from pipelines.progress import Smoothed, post, shown
from pipelines.storage import (
    absolute,
    absolute_paths,
    best_checkpoint,
    checkpoint_name,
    epochs_done,
    newest_checkpoint,
)
from pipelines.tracking import TrackedRun, is_finished, open_run, tracking_uri


@dataclass(frozen=True)
class Resources:
    """What a training runs on."""

    num_workers: int = 1
    cpus_per_worker: int = 1
    use_gpu: bool = False
    max_failures: int = 3
    """Failures of workers, after each of which the run goes on from its last checkpoint."""

    def wanted(self) -> dict[str, int]:
        """Return what all workers take of a cluster, by Ray's names."""
        return {
            "CPU": self.num_workers * self.cpus_per_worker,
            "GPU": self.num_workers * int(self.use_gpu),
        }


@dataclass(frozen=True)
class Trained:
    """What a training left behind."""

    checkpoint: Path
    """The best by validation."""
    run: TrackedRun


def train_driver(
    config: Config,
    folder: Path,
    resources: Resources,
    *,
    uri: str,
    board: ActorHandle | None = None,
    callbacks: list[Any] | None = None,
    parent: str | None = None,
    allow_change: bool = False,
) -> Trained:
    """Train an experiment, or go on with it, and log it in MLflow.

    `pipelines/train.py`, each trial of `pipelines/tune.py` and the tests call this one function.

    Args:
        config: of the experiment; its paths absolute.
        folder: of the run: its checkpoints are stored there, and its name is the run's.
        resources: workers, and cores or GPUs for each.
        uri: of the MLflow server.
        board: told of the progress (`pipelines.progress`).
        callbacks: of Ray Train.
        parent: id of the MLflow run that this one is part of.
        allow_change: whether a run may go on with other settings than it began with.

    Raises:
        ConfigError, DataError, CheckpointError: as `check_run` says, or the run is finished.
        MSTError: whatever stopped a worker, if it is an error of this library.
        ray.train.TrainingFailedError: any other failure of the workers.
    """
    check_run(config, folder, resources, allow_change=allow_change)
    newest = newest_checkpoint(folder)
    all_trained = newest is not None and epochs_done(newest) >= config.train.epochs
    if all_trained and is_finished(uri, folder):
        raise ConfigError(
            f"run '{folder.name}' is finished: {newest} has all {config.train.epochs} epochs; "
            "give this one another --name"
        )
    tracked = open_run(uri, folder, config, resume=newest is not None, parent=parent)
    if newest and (changed := differences(read_config(newest), config)):
        tracked.note_changes(epochs_done(newest), changed)
    try:
        if not all_trained:
            _trainer(config, folder, resources, tracked, board, callbacks).fit()
        best = best_checkpoint(folder)
        tracked.log_checkpoint(best)
    except BaseException as error:
        if parent is None:  # to a trial, being stopped looks like a failure: its sweep knows which it was
            tracked.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise _cause(error) from error
    tracked.finish("FINISHED")
    return Trained(best, tracked)


def _trainer(
    config: Config,
    folder: Path,
    resources: Resources,
    tracked: TrackedRun,
    board: ActorHandle | None,
    callbacks: list[Any] | None,
) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "run": tuple(tracked),
            "threads": resources.cpus_per_worker,
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": int(resources.use_gpu)},
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(
                max_failures=resources.max_failures,
                controller_failure_limit=resources.max_failures,  # type: ignore[call-arg]  # mypy sees Train V1's class
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.train.keep, checkpoint_score_attribute="val_score"
            ),
            callbacks=callbacks,
        ),
    )


def check_run(config: Config, folder: Path, resources: Resources, *, allow_change: bool = False) -> None:
    """Refuse a request that cannot be trained, before any worker starts.

    Args:
        config: of the experiment.
        folder: of the run.
        resources: that are asked for.
        allow_change: whether a run may go on with other settings than it began with, the network's excepted.

    Raises:
        ConfigError: batches that the workers cannot share, more workers than the cluster can hold, or a
            folder with a run of other settings.
        DataError: a folder or file of the data does not exist.
        CheckpointError: nor do the weights to start from, or they do not fit.
    """
    check_sources((*config.data.train, *config.data.val), UPath(config.data.root))
    parts = config.train.micro_batches or resources.num_workers
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is no multiple of {resources.num_workers} workers"
        )
    if parts < resources.num_workers:
        raise ConfigError(
            f"{resources.num_workers} workers cannot share train.micro_batches {parts}; give at least as many"
        )
    there = ray.cluster_resources()
    for kind, wanted in resources.wanted().items():
        if wanted > there.get(kind, 0):
            raise ConfigError(f"the workers need {wanted} {kind}s, the cluster has {there.get(kind, 0):.0f}")
    newest = newest_checkpoint(folder)
    if newest is None:
        if config.train.init:
            initialize(MST(config.model), config.train.init, config.train.reset)
    elif changed := differences(read_config(newest), config):
        of_network = any(each.startswith("model.") for each in changed)
        if of_network or not allow_change:
            hint = "" if of_network else ", or go on with these by --allow-config-change"
            raise ConfigError(
                f"run '{folder.name}' was started with other settings ({'; '.join(changed)}); "
                f"give this one another --name{hint}"
            )


def train_worker(options: dict[str, Any]) -> None:
    """Train this worker's share; Ray Train calls it on every worker, and again after a failure."""
    torch.set_num_threads(options["threads"])
    config = from_dict(options["config"])
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    leader = Leader(TrackedRun(*options["run"]), options["board"], config) if shard.rank == 0 else None
    state, origin = _start(config)
    root, fetch = UPath(config.data.root), reader(config.data.cache, config.data.cache_gb)
    training_set = TrainingSet(read_records(config.data.train, root), config, fetch)
    validation = read_samples(config.data.val, root, fetch)
    for _ in validation_share(validation, config, shard):
        pass  # a broken sample is to be found now, not when the first epoch is trained
    if leader:
        leader.note(f"{len(training_set)} images, {len(validation)} validation objects; weights: {origin}")
    for report in fit(config, state, training_set, validation, shard):
        if isinstance(report, EpochReport):
            if leader:
                leader.epoch(report)
            save_and_report(report, state, config, shard)
        elif leader:
            leader.step(report)


def _start(config: Config) -> tuple[TrainingState, str]:
    """Make this worker's state, new or from the run's last checkpoint, and a line that says which."""
    device, checkpoint = ray.train.torch.get_device(), ray.train.get_checkpoint()
    if checkpoint is None:
        return new_state(config, device)
    state, _ = new_state(override(config, {"train.init": None}), device)  # `init` may be gone by now
    with checkpoint.as_directory() as saved:
        state.load_state_dict(load_training_state(Path(saved)))
    return state, f"resumed after epoch {state.epoch}"


def save_and_report(report: EpochReport, state: TrainingState, config: Config, shard: Shard) -> None:
    """Hand the checkpoint of an epoch to Ray Train; every worker must call this."""
    if shard.rank:
        ray.train.report(report.metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(
            Path(folder), state.weights(), config, training_state=state.state_dict(), metrics=report.metrics
        )
        ray.train.report(
            report.metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=checkpoint_name(state.epoch),
        )


class Leader:
    """What the first worker tells the world: the progress board and MLflow."""

    def __init__(self, run: TrackedRun, board: ActorHandle | None, config: Config) -> None:
        self._run, self._board, self._config = run, board, config
        self._smoothed = Smoothed()

    def note(self, text: str) -> None:
        """Show a line above the bar."""
        if self._board:
            self._board.note.remote(text)

    def step(self, report: StepReport) -> None:
        """Move the bar, and log the step if it is one of every `train.log_every`."""
        smooth = self._smoothed.update(report.metrics)
        if self._board:
            post(self._board, report, smooth, self._config)
        if report.step % self._config.train.log_every == 0:
            self._run.log(report.metrics, report.step)

    def epoch(self, report: EpochReport) -> None:
        """Show and log a validation."""
        steps = self._config.train.samples_per_epoch // self._config.train.batch_size
        self._run.log(report.metrics, (report.epoch + 1) * steps - 1)
        summary = report.summary
        line = "  ".join(f"NoC@{target} {value:.2f}" for target, value in summary.noc.items())
        skipped = report.metrics["skipped_samples"]
        self.note(
            f"epoch {report.epoch + 1}/{self._config.train.epochs}  IoU@1 {summary.iou[0]:.3f}  {line}"
            + (
                f"  {skipped:.0f} samples replaced: broken images, named in the workers' logs"
                if skipped
                else ""
            )
        )


def _cause(error: BaseException) -> BaseException:
    """The library's own error behind a failure of Ray Train, or the failure itself."""
    failures = getattr(error, "worker_failures", {})
    return next((each for each in failures.values() if isinstance(each, MSTError)), error)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options that `resources_of` reads to a parser."""
    parser.add_argument("--num-workers", type=count, default=1, help="Ray workers that share each batch")
    parser.add_argument("--cpus-per-worker", type=count, default=1, help="cores for each worker")
    parser.add_argument("--use-gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--max-failures", type=int, default=3, help="of workers, before a run is given up")


def resources_of(arguments: argparse.Namespace) -> Resources:
    """Return what the command line asks for."""
    return Resources(
        arguments.num_workers, arguments.cpus_per_worker, arguments.use_gpu, arguments.max_failures
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Train one experiment over Ray workers.", allow_abbrev=False, usage="%(prog)s [options]"
    )
    parser.add_argument("--name", help="of the run; the same name goes on with it (default: the recipe)")
    parser.add_argument("--storage", default="runs", help="folder of all runs")
    parser.add_argument(
        "--allow-config-change", action="store_true", help="go on with a run under other settings"
    )
    add_resources(parser)
    add_settings(parser)
    arguments = parse(parser, None)
    config = absolute_paths(config_of(arguments))
    folder = Path(absolute(arguments.storage)) / (arguments.name or arguments.recipe)
    resources = resources_of(arguments)
    connect()
    start = time.monotonic()
    with shown(folder.name) as board:
        trained = train_driver(
            config,
            folder,
            resources,
            uri=tracking_uri(),
            board=board,
            allow_change=arguments.allow_config_change,
        )
    print(f"{folder.name}: best checkpoint {trained.checkpoint}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    run(main)
