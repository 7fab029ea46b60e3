"""One step of a training: the model clicks on its own errors, then learns from where that leads."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mst.config import Config
from mst.data.sampling.training_set import Batch
from mst.losses import total_loss
from mst.model import MST
from mst.model.encoded import Features
from mst.model.flops import PartsFlops
from mst.model.mst import Output
from mst.training.clicks import next_clicks
from mst.training.features import FeatureStore
from mst.training.sides import reduced, side_of_step
from mst.training.state import TrainingState

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIGURES = ("loss", "loss_segmentation", "loss_contrastive", "iou", "grad_norm")


def train_step(
    network: nn.Module,
    state: TrainingState,
    parts: Mapping[int, Batch],
    config: Config,
    store: FeatureStore | None = None,
) -> dict[str, float]:
    """Take the step `state.step`; `state` moves on in place.

    A step whose gradient is not finite, as after a loss that is NaN, changes no weights: it is counted in
    `state.bad_steps`. All workers see the same gradient, and so decide the same.

    Args:
        network: `state.model`, or a distributed wrapper of it.
        state: of the training.
        parts: this worker's micro-batches by their number; their gradients add up to those of the batch.
        config: of the experiment.
        store: of what a frozen encoder says of views that come again; None keeps nothing.

    Returns:
        The losses and the IoU of the last prediction, means over this worker's samples, and the norm of the
        gradient of the whole batch.
    """
    workers = dist.get_world_size() if isinstance(network, DistributedDataParallel) else 1
    # The wrapper takes the mean over workers, each of which has some of all parts.
    weight = workers / (config.train.micro_batches or workers)
    state.optimizer.zero_grad(set_to_none=True)
    figures: list[Tensor] = []
    for number, batch in parts.items():
        with _without_sync(network, more=len(figures) + 1 < len(parts)):
            _seed_dropout(config.seed, state.step, number)
            mine = reduced(batch.to(state.model.mean.device), side_of_step(state.step, config))
            figures.append(_learn(network, state, mine, weight, config, store))
    state.scaler.unscale_(state.optimizer)
    gradients = [each.grad for each in state.model.parameters() if each.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # The one moment of a step at which the CPU waits for the device.
    values = torch.cat([torch.stack(figures).mean(0), norm[None]]).tolist()
    _apply(state, norm, is_finite=math.isfinite(values[-1]), config=config)
    return dict(zip(_FIGURES, values, strict=True))


def _apply(state: TrainingState, norm: Tensor, *, is_finite: bool, config: Config) -> None:
    if is_finite:
        if config.optim.clip_norm:
            nn.utils.clip_grads_with_norm_(state.model.parameters(), config.optim.clip_norm, norm)
        state.scaler.step(state.optimizer)
    state.scaler.update()
    state.bad_steps = 0 if is_finite else state.bad_steps + 1
    state.step += 1


def _without_sync(network: nn.Module, *, more: bool) -> AbstractContextManager[None]:
    """Let gradients add up on this worker while there are more to come in the step."""
    if more and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def _learn(
    network: nn.Module,
    state: TrainingState,
    batch: Batch,
    weight: float,
    config: Config,
    store: FeatureStore | None,
) -> Tensor:
    """Add the gradients of one micro-batch, times a weight; return its losses and its IoU, (4,)."""
    # Two blocks: in one, torch before a fix of December 2025 hands weights that were cast without gradients
    # to the forward that learns, and they get none.
    with autocast(config, batch.image.device):
        seen = _seen(state.model, batch.image, store)
        count = iterations(state.step, config)
        clicks, prev_mask = simulate_clicks(state.model, seen, batch, count, config)
    with autocast(config, batch.image.device):
        output: Output = network(seen, clicks, prev_mask)
    losses = total_loss(output, batch.mask, config.loss)
    state.scaler.scale(losses.total * weight).backward()  # type: ignore[no-untyped-call]
    iou = _mean_iou(output.logits, batch.mask)
    return torch.stack([*(each.detach() for each in losses), iou])


@torch.no_grad()
def _seen(model: MST, images: Tensor, store: FeatureStore | None) -> Tensor | Features:
    """What a frozen encoder says of images, which is the same for all that a step does; else the images."""
    if store:
        return store.of(model, images)
    image = images.float() / 255
    return model.features(image) if model.is_encoder_frozen() else image


def autocast(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """The precision of an experiment's forward passes."""
    dtype = _PRECISIONS.get(config.train.precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def matrix_products(config: Config) -> Iterator[None]:
    """Let products of fp32 matrices be of an experiment's precision as long as the block runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.train.precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seed_dropout(*numbers: int) -> None:
    """Make dropout a function of seed, step and micro-batch: the same in a resumed run, and on any worker."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@torch.no_grad()
def simulate_clicks(
    model: MST, image: Tensor | Features, batch: Batch, count: int, config: Config
) -> tuple[Tensor, Tensor]:
    """Add clicks on the model's errors, one after the other (RITM, section 3.2).

    Args:
        model: predicts in evaluation mode, and is left in training mode.
        image: (B, 3, S, S) in [0, 1], or what the encoder said of it.
        batch: with the clicks that each sample starts with.
        count: of clicks, at most `clicks.max_iterations`.
        config: of the experiment.

    Returns:
        Clicks (B, N, 3) and the previous mask (B, 1, S, S) for the step that learns.
    """
    clicks = batch.clicks.clone()
    prev_mask = torch.zeros_like(batch.mask)
    truth = batch.mask[:, 0] > 0.5
    first = clicks.shape[1] - config.clicks.max_iterations
    model.eval()
    known = model.encode(image) if count and config.model.click_entry else image  # once for all clicks
    for iteration in range(count):
        prev_mask = model(known, clicks, prev_mask).logits.float().sigmoid()
        prediction = prev_mask[:, 0] > config.eval.threshold
        clicks[:, first + iteration] = next_clicks(prediction, truth, batch.draws[:, iteration])
    model.train()
    return clicks, prev_mask


def iterations(step: int, config: Config) -> int:
    """How many clicks a step adds, 0 .. `clicks.max_iterations`; the same on all workers."""
    return int(np.random.default_rng((config.seed, step)).integers(config.clicks.max_iterations + 1))


def flops_of_step(step: int, config: Config, parts: Mapping[int, PartsFlops]) -> int:
    """Count the operations that an image of a step costs.

    Args:
        step: from 0.
        config: of the experiment.
        parts: what encoding and click cost at each side (`mst.training.sides.flops_by_side`). A backward
            costs twice its forward. The added clicks share an encoding; an encoder that learns encodes once
            more for the step itself, and a frozen one has no backward.
    """
    encode, click = parts[side_of_step(step, config)]
    added = iterations(step, config)
    is_frozen = "encoder" in config.train.frozen_in(step // config.train.steps_per_epoch)
    encodings = 1 if is_frozen else 3 + min(1, added)
    return encodings * encode + (3 + added) * click


def _mean_iou(logits: Tensor, mask: Tensor) -> Tensor:
    prediction, truth = logits.detach().flatten(1) > 0, mask.flatten(1) > 0.5
    intersection, union = (prediction & truth).sum(1), (prediction | truth).sum(1)
    return torch.where(union > 0, intersection / union, 1).mean()
