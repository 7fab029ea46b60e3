"""Iterative training on clicks (RITM, section 3.2): one step, and the loop over epochs, in plain torch.

The loop is a generator of reports: whoever drives it logs them, saves `TrainingState` when an `EpochReport`
comes, and decides when to stop. It works alone and inside a `torch.distributed` process group.
"""

import copy
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mst.checkpoint import initialize
from mst.clicks import click_tensor, training_click
from mst.config import Config
from mst.data.sampler import Shard, ShardedBatches
from mst.data.sources import SampleSet
from mst.data.training_set import Batch, TrainingSet
from mst.evaluation import ObjectRecord, Summary, evaluate, summarize
from mst.losses import total_loss
from mst.model import MST
from mst.optim import build_optimizer, freeze, learning_rate, set_learning_rate, update_average
from mst.predictor import Predictor


class StepReport(NamedTuple):
    """One optimizer step; the figures are this worker's."""

    epoch: int
    """From 0."""
    step: int
    """From 0, over all epochs."""
    steps: int
    """Of the whole training."""
    metrics: dict[str, float]


class EpochReport(NamedTuple):
    """The end of an epoch with a validation, over all workers."""

    epoch: int
    metrics: dict[str, float]
    summary: Summary


@dataclass
class TrainingState:
    """Everything that a training is, between two steps."""

    model: MST
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] | None
    """Running average of the weights; None where none is kept."""
    epoch: int = 0
    """The next epoch to run, from 0."""
    skipped_samples: int = 0
    """Samples so far that another image replaced because theirs was broken, over all workers."""

    def weights(self) -> dict[str, Tensor]:
        """The weights to validate, save and use."""
        return self.average if self.average is not None else self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` resumes from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "epoch": self.epoch,
            "skipped_samples": self.skipped_samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            for name, value in state["average"].items():
                self.average[name].copy_(value)
        self.epoch, self.skipped_samples = state["epoch"], state["skipped_samples"]


def new_state(config: Config, device: torch.device) -> tuple[TrainingState, str]:
    """Make the state of a training that has not begun.

    Returns:
        The state, and a line that says what its weights are.

    Raises:
        CheckpointError: `train.init` cannot be read or does not fit.
    """
    torch.manual_seed(config.seed)
    model = MST(config.model)
    origin = "random weights"
    if config.train.init is not None:
        origin = initialize(model, config.train.init, config.train.reset)
    model.to(device)
    average = copy.deepcopy(model.state_dict()) if config.optim.ema else None
    return TrainingState(model, build_optimizer(model, config.optim), average), origin


def fit(
    config: Config, state: TrainingState, training_set: TrainingSet, validation: SampleSet, shard: Shard
) -> Iterator[StepReport | EpochReport]:
    """Train from `state.epoch` to the last epoch; `state` moves on in place.

    Args:
        config: of the experiment.
        state: where to begin.
        training_set: the same on every worker.
        validation: the same on every worker; each evaluates its share of it.
        shard: this worker's place; with more than one worker a process group must exist.

    Yields:
        A report for each step and, every `train.validate_every` epochs and at the end, one for the epoch,
        when the state is ready to be saved. A driver that saves it resumes from there.
    """
    steps_per_epoch = config.train.samples_per_epoch // config.train.batch_size
    while state.epoch < config.train.epochs:
        batches = ShardedBatches(
            len(training_set),
            config.train.samples_per_epoch,
            config.train.batch_size,
            micro_batches=config.train.micro_batches or shard.world_size,
            seed=config.seed,
            epoch=state.epoch,
            shard=shard,
        )
        loader = DataLoader(
            training_set, batch_sampler=batches, num_workers=config.data.loader_workers, pin_memory=False
        )
        freeze(state.model, config.train.frozen if state.epoch < config.train.freeze_epochs else ())
        # Wrapped anew in each epoch, since the wrapper notes once which parameters learn.
        network = DistributedDataParallel(state.model) if shard.world_size > 1 else state.model
        state.model.train()
        start, skipped = time.perf_counter(), 0
        mine = iter(loader)
        for number in range(steps_per_epoch):
            step = state.epoch * steps_per_epoch + number
            rate = learning_rate(step, steps_per_epoch, config.train.epochs, config.optim)
            set_learning_rate(state.optimizer, rate)
            parts = {part: Batch(*next(mine)) for part in batches.mine}
            skipped += sum(int(batch.skipped.sum()) for batch in parts.values())
            metrics = train_step(network, state.optimizer, parts, step, config)
            if state.average is not None:
                update_average(state.average, state.model, config.optim.ema, step)
            now = time.perf_counter()
            metrics["images_per_second"] = config.train.batch_size / (now - start)
            metrics["lr"] = rate
            start = now
            yield StepReport(state.epoch, step, steps_per_epoch * config.train.epochs, metrics)
        state.skipped_samples += sum(_gather(skipped, shard))
        state.epoch += 1
        if state.epoch % config.train.validate_every == 0 or state.epoch == config.train.epochs:
            summary = validate(state, validation, config, shard)
            metrics = {f"val_{name}": value for name, value in summary.metrics().items()}
            metrics["val_score"] = validation_score(summary, config)
            metrics["skipped_samples"] = float(state.skipped_samples)
            metrics["epoch"] = float(state.epoch)
            yield EpochReport(state.epoch - 1, metrics, summary)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[int, Batch],
    step: int,
    config: Config,
) -> dict[str, float]:
    """Let the model click on its own errors, then learn from where that leads.

    Args:
        network: an `MST`, or a distributed wrapper of one.
        optimizer: of its parameters.
        parts: this worker's micro-batches by their number; their gradients add up to those of the batch.
        step: seeds the number of clicks, the same on all workers.
        config: of the experiment.

    Returns:
        The losses, and the IoU of the last prediction: means over this worker's samples.
    """
    model = network.module if isinstance(network, DistributedDataParallel) else network
    assert isinstance(model, MST)
    workers = dist.get_world_size() if isinstance(network, DistributedDataParallel) else 1
    # The wrapper takes the mean over workers, each of which has some of all parts.
    weight = workers / (config.train.micro_batches or workers)
    optimizer.zero_grad(set_to_none=True)
    found: list[dict[str, float]] = []
    for number, batch in parts.items():
        with _without_sync(network, more=len(found) + 1 < len(parts)):
            _seed_dropout(config.seed, step, number)
            found.append(_learn(network, model, batch.to(model.mean.device), step, weight, config))
    if config.optim.clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip_norm)
    optimizer.step()
    return {name: sum(each[name] for each in found) / len(found) for name in found[0]}


def _without_sync(network: nn.Module, *, more: bool) -> AbstractContextManager[None]:
    """Let gradients add up on this worker while there are more to come in the step."""
    if more and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def _learn(
    network: nn.Module, model: MST, batch: Batch, step: int, weight: float, config: Config
) -> dict[str, float]:
    """Add the gradients of one micro-batch, times a weight."""
    image = batch.image.float() / 255
    with torch.autocast(image.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        clicks, prev_mask = simulate_clicks(model, image, batch, step, config)
        output = network(image, clicks, prev_mask)
    losses = total_loss(output, batch.mask, config.loss)
    (losses.total * weight).backward()  # type: ignore[no-untyped-call]
    return {
        "loss": losses.total.item(),
        "loss_segmentation": losses.segmentation.item(),
        "loss_contrastive": losses.contrastive.item(),
        "iou": _mean_iou(output.logits, batch.mask),
    }


def _seed_dropout(*numbers: int) -> None:
    """Make dropout a function of seed, step and micro-batch: the same in a resumed run, and on any worker."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@torch.no_grad()
def simulate_clicks(
    model: MST, image: Tensor, batch: Batch, step: int, config: Config
) -> tuple[Tensor, Tensor]:
    """Add 0 .. `clicks.max_iterations` clicks on the model's errors (RITM, section 3.2).

    Args:
        model: predicts in evaluation mode, and is left in training mode.
        image: (B, 3, S, S) in [0, 1].
        batch: with the clicks that each sample starts with.
        step: seeds the number of clicks.
        config: of the experiment.

    Returns:
        Clicks (B, N, 3) and the previous mask (B, 1, S, S) for the step that learns.
    """
    clicks = batch.clicks.clone()
    prev_mask = torch.zeros_like(batch.mask)
    truth = batch.mask[:, 0].cpu().numpy() > 0.5
    iterations = np.random.default_rng((config.seed, step)).integers(config.clicks.max_iterations + 1)
    model.eval()
    for iteration in range(iterations):
        prev_mask = model(image, clicks, prev_mask).logits.float().sigmoid()
        predictions = prev_mask[:, 0].cpu().numpy() > config.eval.threshold
        drawn = [
            training_click(prediction, mask, np.random.default_rng((int(seed), iteration)))
            for prediction, mask, seed in zip(predictions, truth, batch.seed, strict=True)
        ]
        slot = clicks.shape[1] - config.clicks.max_iterations + iteration
        clicks[:, slot] = click_tensor([[click] if click else [] for click in drawn], 1)[:, 0].to(
            clicks.device
        )
    model.train()
    return clicks, prev_mask


def validate(state: TrainingState, samples: SampleSet, config: Config, shard: Shard) -> Summary:
    """Evaluate the state's weights by the click protocol, each worker on its share of the objects."""
    model = copy.deepcopy(state.model)
    model.load_state_dict(state.weights())
    mine = validation_share(samples, config, shard)
    records = evaluate(Predictor(model, config.eval).open, mine, config.train.val_clicks)
    everyone: list[list[ObjectRecord]] = _gather(records, shard)
    return summarize([record for each in everyone for record in each], config.train.val_clicks)


def validation_share(samples: SampleSet, config: Config, shard: Shard) -> SampleSet:
    """Return the objects that this worker validates on."""
    return samples.spread(config.train.val_objects).shard(shard.rank, shard.world_size)


def validation_score(summary: Summary, config: Config) -> float:
    """The figure that a higher value of makes a better checkpoint (`train.choose_by`)."""
    if config.train.choose_by == "iou":
        return summary.mean_iou
    return -summary.noc[int(config.train.choose_by.removeprefix("noc"))]


def _gather(value: Any, shard: Shard) -> list[Any]:
    """Every worker's value, on every worker."""
    if shard.world_size == 1:
        return [value]
    values = [None] * shard.world_size
    dist.all_gather_object(values, value)
    return values


def _mean_iou(logits: Tensor, mask: Tensor) -> float:
    prediction, truth = logits.detach().flatten(1) > 0, mask.flatten(1) > 0.5
    intersection, union = (prediction & truth).sum(1), (prediction | truth).sum(1)
    return float(torch.where(union > 0, intersection / union, 1).mean())
