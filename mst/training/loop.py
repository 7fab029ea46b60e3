"""The loop over steps, epochs and validations.

It is a generator of reports: whoever drives it logs them, saves the state when a report says so, and decides
when to stop. It works alone and inside a `torch.distributed` process group.
"""

import copy
import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mst.config import Config
from mst.data.sampling.sampler import Shard, ShardedBatches
from mst.data.sampling.training_set import Batch, TrainingSet
from mst.data.sources import SampleSet
from mst.devices import has_bf16
from mst.errors import PredictionError, TrainingError
from mst.evaluation import ObjectRecord, Summary, summarize
from mst.evaluation.batched import evaluate_batched
from mst.optim import freeze, learning_rate, set_learning_rate, update_average
from mst.training.features import FeatureStore
from mst.training.state import TrainingState
from mst.training.step import matrix_products, train_step

_log = logging.getLogger(__name__)

_OBJECTS_AT_ONCE = 16  # of a validation on a GPU, which one object leaves idle
_ENOUGH = 100  # samples after which the share of images that cannot be used says something
_NO_MEMORY = ("can't allocate memory", "not enough memory")  # what PyTorch says on a CPU


class StepReport(NamedTuple):
    """One optimizer step; the figures are this worker's."""

    epoch: int
    """From 0."""
    step: int
    """From 0, over all epochs."""
    steps: int
    """Of the whole training."""
    metrics: dict[str, float]
    is_checkpoint: bool
    """Whether the state is to be saved now."""


class EpochReport(NamedTuple):
    """The end of an epoch with a validation, over all workers."""

    epoch: int
    metrics: dict[str, float]
    summary: Summary
    records: Sequence[ObjectRecord]
    """Of all objects, in an order that depends on the number of workers."""
    is_checkpoint: bool = True


def fit(
    config: Config, state: TrainingState, training_set: TrainingSet, validation: SampleSet, shard: Shard
) -> Generator[StepReport | EpochReport, None, None]:
    """Train from `state.step` to the end; `state` moves on in place.

    Args:
        config: of the experiment.
        state: where to begin.
        training_set: the same on every worker.
        validation: the same on every worker; each evaluates its share of it.
        shard: this worker's place; with more than one worker a process group must exist.

    Yields:
        A report for each step and, every `train.validate_every` epochs and at the end, one for the epoch.
        Where a report asks for it, a driver that saves the state resumes from there.

    Raises:
        TrainingError: `train.max_bad_steps` in a row had no finite gradient, a validation found no numbers,
            more images than `data.max_faulty` allows cannot be used, or memory is too small.
    """
    if shard.rank == 0 and config.train.precision == "bf16" and not has_bf16(state.model.mean.device):
        _log.warning("this device has no bf16 of its own: train.precision fp32 is several times faster here")
    with matrix_products(config):
        while True:
            if _validation_is_due(state, config):
                yield _validate(state, validation, config, shard)
            if state.is_finished(config):
                return
            yield from _train_epoch(config, state, training_set, shard)


def _validation_is_due(state: TrainingState, config: Config) -> bool:
    """Whether an epoch has just ended, with all its steps or after a restart, that has a validation."""
    epochs, more = divmod(state.step, config.train.steps_per_epoch)
    is_last = state.step == config.train.steps
    return (
        not more and state.step > state.validated and (is_last or epochs % config.train.validate_every == 0)
    )


def _train_epoch(
    config: Config, state: TrainingState, training_set: TrainingSet, shard: Shard
) -> Iterator[StepReport]:
    """Take the steps that are left of an epoch."""
    train = config.train
    epoch, first = divmod(state.step, train.steps_per_epoch)
    batches = ShardedBatches(
        len(training_set),
        train.samples_per_epoch,
        train.batch_size,
        micro_batches=train.micro_batches or shard.world_size,
        seed=config.seed,
        epoch=epoch,
        shard=shard,
        first=first,
    )
    workers, pins = config.data.loader_workers, torch.cuda.is_available()
    mine = iter(DataLoader(training_set, batch_sampler=batches, num_workers=workers, pin_memory=pins))
    network = _network(state, config, epoch, shard)
    store = _store(state, config, shard)
    skipped = drawn = all_skipped = 0
    for number in range(first, train.steps_per_epoch):
        start = time.perf_counter()
        parts = {part: Batch(*next(mine)) for part in batches.mine}
        waited = time.perf_counter() - start
        newly = sum(int(batch.skipped.sum()) for batch in parts.values())
        skipped, all_skipped = skipped + newly, all_skipped + newly
        drawn += sum(len(batch.skipped) for batch in parts.values())
        _check_skipped(all_skipped, drawn, config)
        metrics = _take_step(network, state, parts, config, store)
        if state.bad_steps:
            keys = [key for part in parts for key in batches.keys(number, part)]
            _complain(state, metrics, [training_set.name(key) for key in keys], config, shard)
        seconds = time.perf_counter() - start
        metrics |= {"images_per_second": train.batch_size / seconds, "data_wait_share": waited / seconds}
        is_checkpoint = _checkpoint_is_due(state, config)
        if is_checkpoint or number + 1 == train.steps_per_epoch:
            state.skipped_samples += sum(gather(skipped, shard))
            skipped = 0
        yield StepReport(epoch, state.step - 1, train.steps, metrics, is_checkpoint)


def _check_skipped(skipped: int, drawn: int, config: Config) -> None:
    """Stop where images that cannot be used are no exception.

    Args:
        skipped: such images of an epoch so far, as this worker met them.
        drawn: samples that it made meanwhile.
        config: of the experiment.
    """
    if drawn >= _ENOUGH and skipped > config.data.max_faulty * (skipped + drawn):
        raise TrainingError(
            f"{skipped} of {skipped + drawn} images that were drawn cannot be used, and at most "
            f"{config.data.max_faulty:.0%} may be so (data.max_faulty); the log names them, and "
            "'pipelines/prepare.py --check' lists them all"
        )


def _network(state: TrainingState, config: Config, epoch: int, shard: Shard) -> nn.Module:
    """The model as an epoch trains it, wrapped anew: the wrapper notes once which parameters learn."""
    freeze(state.model, config.train.frozen_in(epoch))
    state.model.train()
    if shard.world_size == 1:
        return state.model
    return DistributedDataParallel(state.model, gradient_as_bucket_view=True)


def _store(state: TrainingState, config: Config, shard: Shard) -> FeatureStore | None:
    """What keeps features in this epoch; the workers of a machine share its room."""
    if config.train.features_cache is None or not state.model.is_encoder_frozen():
        return None
    room = int(config.train.features_gb * 1e9)
    return FeatureStore(Path(config.train.features_cache), room, state.model, shard.world_size)


def _checkpoint_is_due(state: TrainingState, config: Config) -> bool:
    """Whether so many steps are taken; the end of an epoch is saved together with its validation."""
    every = config.train.checkpoint_every
    return every > 0 and state.step % every == 0 and not _validation_is_due(state, config)


def _take_step(
    network: nn.Module,
    state: TrainingState,
    parts: Mapping[int, Batch],
    config: Config,
    store: FeatureStore | None,
) -> dict[str, float]:
    step = state.step
    rate = learning_rate(step, config.train.steps_per_epoch, config.train.epochs, config.optim)
    set_learning_rate(state.optimizer, rate)
    metrics = _checked_step(network, state, parts, config, store)
    if state.average is not None:
        update_average(state.average, state.model, config.optim.ema, step)
    return metrics | {"lr": rate}


def _checked_step(
    network: nn.Module,
    state: TrainingState,
    parts: Mapping[int, Batch],
    config: Config,
    store: FeatureStore | None,
) -> dict[str, float]:
    try:
        return train_step(network, state, parts, config, store)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not is_memory and not any(words in str(error) for words in _NO_MEMORY):
            raise
        samples = parts[next(iter(parts))].image.shape[0]
        raise TrainingError(
            f"out of memory at step {state.step}, with {samples} images of {config.model.image_size} px at a "
            f"time; raise train.micro_batches (now {config.train.micro_batches or 'one for each worker'}) or "
            "set train.recompute, train.precision bf16, or a lower train.batch_size "
            f"({str(error).splitlines()[0]})"
        ) from None


def _complain(
    state: TrainingState, metrics: Mapping[str, float], images: Sequence[str], config: Config, shard: Shard
) -> None:
    """Say of which images a step was left out; stop where that has become the rule.

    Args:
        state: after the step.
        metrics: of the step.
        images: that this worker read for it.
        config: of the experiment.
        shard: this worker's place.
    """
    everyone = gather((math.isfinite(metrics["loss"]), images), shard)
    what = (
        f"step {state.step - 1} has no finite loss or gradient; "
        f"its images: {', '.join(sorted({name for _, names in everyone for name in names}))}"
    )
    # In fp16 the loss's scale is lowered where a gradient overflows: that is no fault of the images.
    if config.train.precision != "fp16" or not all(is_finite for is_finite, _ in everyone):
        _log.warning("left out: %s", what)
    if state.bad_steps >= config.train.max_bad_steps:
        raise TrainingError(
            f"{what}. It is the last of {state.bad_steps} in a row, which changed nothing: the newest "
            "checkpoint is good. Lower optim.lr, set optim.clip_norm, or look at these images"
        )


def _validate(state: TrainingState, samples: SampleSet, config: Config, shard: Shard) -> EpochReport:
    try:
        records = validate(state, samples, config, shard)
    except PredictionError as error:
        raise TrainingError(
            f"validation after step {state.step}: {error}. Go on from an earlier checkpoint with a lower "
            "optim.lr, or with optim.clip_norm"
        ) from None
    summary = summarize(records, config.train.val_clicks)
    score = validation_score(summary, config)
    is_better = state.best_score is None or score > state.best_score
    state.best_score, state.stale = (score, 0) if is_better else (state.best_score, state.stale + 1)
    state.validated = state.step
    metrics = {f"val_{name}": value for name, value in summary.metrics().items()}
    epochs = state.step // config.train.steps_per_epoch
    metrics |= {"val_score": score, "skipped_samples": float(state.skipped_samples), "epoch": float(epochs)}
    return EpochReport(epochs - 1, metrics, summary, records)


def validate(state: TrainingState, samples: SampleSet, config: Config, shard: Shard) -> list[ObjectRecord]:
    """Evaluate the state's weights by the click protocol, each worker on its share of the objects."""
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.weights())
    mine = validation_share(samples, config, shard)
    at_once = _OBJECTS_AT_ONCE if model.mean.is_cuda else 1
    found = evaluate_batched(model, mine, config.eval, config.train.val_clicks, batch_size=at_once)
    everyone: list[list[ObjectRecord]] = gather(found.records, shard)
    return [record for each in everyone for record in each]


def validation_share(samples: SampleSet, config: Config, shard: Shard) -> SampleSet:
    """Return the objects that this worker validates on."""
    return samples.spread(config.train.val_objects).shard(shard.rank, shard.world_size)


def validation_score(summary: Summary, config: Config) -> float:
    """The figure that a higher value of makes a better checkpoint (`train.choose_by`)."""
    if config.train.choose_by == "iou":
        return summary.mean_iou
    return -summary.noc[int(config.train.choose_by.removeprefix("noc"))]


def gather(value: Any, shard: Shard) -> list[Any]:
    """Every worker's value, on every worker, which all must call."""
    if shard.world_size == 1:
        return [value]
    values = [None] * shard.world_size
    dist.all_gather_object(values, value)
    return values
