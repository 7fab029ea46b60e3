"""The one function that trains: the command, each trial of a sweep and the tests call it."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from upath import UPath

from mst.checkpoint import initialize
from mst.config import Config
from mst.data.files import as_path
from mst.data.sampling.sampler import Shard
from mst.data.sources import check_sources
from mst.errors import ConfigError, MSTError, TrainingError
from mst.model import MST
from mst.overrides import override
from mst.training.checkpoints import Saved, best
from mst.training.resume import check_run
from pipelines.cluster import Resources, check_resources
from pipelines.training.callbacks import StopAtLastingErrors
from pipelines.training.tracking import TrackedRun, open_run, run_of
from pipelines.training.worker import Work, train_share, train_worker


@dataclass(frozen=True)
class Trained:
    """What a training left behind."""

    checkpoint: UPath
    """The best by validation."""
    run: TrackedRun


def train_driver(
    config: Config,
    folder: UPath,
    resources: Resources,
    *,
    uri: str,
    board: ActorHandle | None = None,
    callbacks: Sequence[UserCallback] = (),
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    parent: str | None = None,
    allow_change: bool = False,
) -> Trained:
    """Train an experiment, or go on with it, and log it in MLflow.

    Args:
        config: of the experiment; its paths absolute.
        folder: of the run: its checkpoints are stored there, and its name is the run's.
        resources: workers, and cores or GPUs for each.
        uri: of the MLflow server.
        board: told of the progress (`pipelines.training.progress`).
        callbacks: of Ray Train.
        on_epoch: given each validation's figures; this process is the only worker then, on its own
            cores or GPU, where Ray Train would start two more processes. A failure is not tried again.
        parent: id of the MLflow run that this one is part of.
        allow_change: whether a run may go on with other settings than it began with.

    Raises:
        ConfigError, DataError, CheckpointError: as `check_request` says, or the run is finished.
        MSTError: whatever stopped a worker, if it is an error of this library.
        ray.train.TrainingFailedError: any other failure of the workers.
    """
    config = shared_by(config, resources)
    found, changed = check_request(config, folder, resources, allow_change=allow_change)
    is_trained = found is not None and found.is_finished and not changed
    tracked = run_of(uri, folder, found) if found else None
    if found and is_trained and tracked and tracked.is_finished():
        raise ConfigError(f"run '{folder.name}' is finished: {found.path}; give this one another --name")
    if found and tracked:
        tracked.go_on(config, found.step, changed)
    else:
        tracked = open_run(uri, folder, config, parent=parent)
    try:
        if not is_trained:
            work = Work(config, folder, tracked, resources.cpus_per_worker, board)
            if on_epoch:
                device = torch.device("cuda" if resources.use_gpu else "cpu")
                train_share(work, Shard(0, 1), device, on_epoch)
            else:
                _fit(work, resources, callbacks)
        checkpoint = best(folder).path
        tracked.log_checkpoint(checkpoint)
    except BaseException as error:
        if parent is None:  # to a trial, being stopped looks like a failure: its sweep knows which it was
            tracked.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        cause = _cause(error)
        if cause is error:  # raised from itself, it would be a circle that Ray cannot follow to its end
            raise
        raise cause from error
    tracked.finish("FINISHED")
    return Trained(checkpoint, tracked)


def shared_by(config: Config, resources: Resources) -> Config:
    """Return a config whose batches are cut for all workers, where there may be fewer of them at times."""
    if resources.min_workers is None or config.train.micro_batches:
        return config
    return override(config, {"train.micro_batches": resources.num_workers})


def check_request(
    config: Config, folder: UPath, resources: Resources, *, allow_change: bool = False
) -> tuple[Saved | None, list[str]]:
    """Refuse a request that cannot be trained, before any worker starts.

    Args:
        config: of the experiment.
        folder: of the run.
        resources: that are asked for.
        allow_change: whether a run may go on with other settings than it began with, the network's excepted.

    Returns:
        As `mst.training.resume.check_run`.

    Raises:
        ConfigError: batches that the workers cannot share, more workers than the cluster can hold, or a
            folder with a run of other settings.
        DataError: a folder or file of the data does not exist, or that of the run cannot be written.
        CheckpointError: the weights to start from do not exist, or do not fit.
    """
    check_sources((*config.data.train, *config.data.val), as_path(config.data.root))
    parts = config.train.micro_batches or resources.num_workers
    if config.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size {config.train.batch_size} is no multiple of {resources.num_workers} workers"
        )
    if parts < resources.num_workers:
        raise ConfigError(
            f"{resources.num_workers} workers cannot share train.micro_batches {parts}; give at least as many"
        )
    check_resources(resources)
    found, changed = check_run(folder, config, allow_change=allow_change)
    if found is None and config.train.init:
        initialize(MST(config.model), config.train.init, config.train.reset)
    return found, changed


def _fit(work: Work, resources: Resources, callbacks: Sequence[UserCallback]) -> None:
    """Let Ray Train run the workers, as often as it takes.

    The checkpoints are ours (`mst.training.checkpoints`): they count as soon as they are written, whether or
    not Ray's controller lived to hear of them, and a damaged one costs the steps since the one before. Ray
    Train sees none, and so writes no snapshot that could be damaged.
    """
    elastic = (resources.fewest, resources.num_workers)
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:  # for files of Ray's that nothing depends on
        TorchTrainer(
            train_worker,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(
                num_workers=resources.num_workers if resources.min_workers is None else elastic,  # type: ignore[arg-type]  # mypy sees Train V1's classes
                use_gpu=resources.use_gpu,
                resources_per_worker=resources.per_worker(),
            ),
            run_config=RunConfig(
                name=work.run.name,
                storage_path=scratch,
                failure_config=FailureConfig(
                    max_failures=resources.max_failures,
                    controller_failure_limit=resources.max_failures,  # type: ignore[call-arg]
                ),
                callbacks=[StopAtLastingErrors(), *callbacks],  # type: ignore[list-item]
            ),
        ).fit()


def _cause(error: BaseException) -> BaseException:
    """The library's own error behind a failure of Ray Train, or the failure itself."""
    failures = [getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    ours = next((each for each in failures if isinstance(each, MSTError)), None)
    if ours is None and any("OutOfMemory" in repr(each) or "out of memory" in str(each) for each in failures):
        return TrainingError(
            "a worker was out of memory; raise train.micro_batches, set train.recompute or train.precision "
            f"bf16, or lower train.batch_size or data.loader_workers ({str(error).splitlines()[0]})"
        )
    return ours or error
