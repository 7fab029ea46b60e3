"""What each Ray worker of a training does."""

from collections.abc import Callable
from dataclasses import dataclass

import ray.train
import ray.train.torch
import torch
from ray.actor import ActorHandle
from upath import UPath

from mst.config import Config
from mst.data.sampling.sampler import Shard
from mst.training import EpochReport, fit, gather, validation_share
from mst.training.checkpoints import newest, remove_unfinished, save_report
from mst.training.resume import read_data, start
from pipelines.training.reporting import Leader
from pipelines.training.tracking import TrackedRun


@dataclass(frozen=True)
class Work:
    """What all workers of a training are told."""

    config: Config
    run: UPath
    """Folder of the run."""
    tracked: TrackedRun
    threads: int
    """Of each worker."""
    board: ActorHandle | None = None
    """Shows the progress."""


def train_worker(options: dict[str, Work]) -> None:
    """Train this worker's share of `options["work"]`; Ray Train calls it, and again after a failure."""
    context = ray.train.get_context()
    shard = Shard(context.get_world_rank(), context.get_world_size())
    train_share(options["work"], shard, ray.train.torch.get_device(), ray.train.report)


def train_share(
    work: Work, shard: Shard, device: torch.device, tell: Callable[[dict[str, float]], None]
) -> None:
    """Train one worker's share, from the run's newest checkpoint on.

    Args:
        work: of all workers.
        shard: which share it is.
        device: to train on.
        tell: given each validation's figures.
    """
    torch.set_num_threads(work.threads)
    config, run, tracked = work.config, work.run, work.tracked
    state, origin = start(config, _checkpoint_to_go_on_from(run, shard), device)
    state.run_id = tracked.run_id
    training_set, validation = read_data(config)
    for _ in validation_share(validation, config, shard):
        pass  # a broken sample is to be found now, not when the first epoch is trained
    leader = Leader(tracked, work.board, config, training_set, shard) if shard.rank == 0 else None
    if leader:
        leader.begin(f"{len(validation)} validation objects; weights: {origin}")
    for report in fit(config, state, training_set, validation, shard):
        if leader:
            leader.take(report, state)
            if report.is_checkpoint:
                save_report(run, state, config, report)
        if isinstance(report, EpochReport):
            tell(report.metrics)


def _checkpoint_to_go_on_from(run: UPath, shard: Shard) -> UPath | None:
    """Let the first worker tidy up and choose, so that all take the same."""
    chosen = None
    if shard.rank == 0:
        remove_unfinished(run)
        found = newest(run)
        chosen = str(found.path) if found else None
    (first, *_) = gather(chosen, shard)
    return UPath(first) if first else None
