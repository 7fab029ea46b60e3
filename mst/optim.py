"""AdamW over groups of parameters, the learning rate over time, and the running average of weights."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mst.config import OptimConfig
from mst.model import MST


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Make AdamW with a group for each pair of learning rate and weight decay.

    The ViT, the embedding of clicks and previous mask, the fusion modules, and the rest (neck and head) have
    learning rates of their own; that of the ViT falls by `layer_decay` from block to block towards its input
    (BEiT). Vectors and positions have no weight decay. Each group keeps its factor on the schedule as
    `lr_scale`.
    """
    depth = max((_block(name) for name, _ in model.named_parameters()), default=0)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and not name.startswith("pos_embed.")
        decay = config.weight_decay if decays else 0.0
        groups.setdefault((_lr_scale(name, depth, config), decay), []).append((name, parameter))
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": config.lr * scale, "lr_scale": scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ],
        betas=config.betas,
        fused=True,
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over the running averages of another optimizer's state, which may have had other settings.

    Each is found by its parameter's name; groups and their options stay as they were made.
    """
    theirs, ours = state["param_groups"], optimizer.state_dict()["param_groups"]
    if any("param_names" not in group for group in theirs):  # written before there were names
        optimizer.load_state_dict(dict(state))
        return
    by_name = {
        name: state["state"].get(index)
        for group in theirs
        for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    averages = {
        index: by_name[name]
        for group in ours
        for name, index in zip(group["param_names"], group["params"], strict=True)
        if by_name[name] is not None
    }
    optimizer.load_state_dict({"state": averages, "param_groups": ours})


def freeze(model: MST, parts: Collection[str]) -> None:
    """Keep some parts of a network (`train.frozen`) from learning, and let all others learn."""
    for name, parameter in model.named_parameters():
        is_frozen = _part(name) in parts or ("encoder" in parts and model.is_of_encoder(name))
        parameter.requires_grad_(not is_frozen)


def learning_rate(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of one step, from 0, before the groups' factors: a pure function, to resume exactly."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "step":
        passed = sum(step >= milestone * steps_per_epoch for milestone in config.milestones)
        return float(config.lr * 0.1**passed)
    if config.schedule == "cosine":
        total = max(1, steps_per_epoch * epochs - config.warmup_steps)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(1, (step - config.warmup_steps) / total)))
    return config.lr


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Move the running average of weights towards the model's, in place.

    Early steps count more, as decay rises to its value with (1 + step) / (10 + step).
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in model.state_dict().items():
        average[name].lerp_(value, 1 - decay)


def _lr_scale(name: str, depth: int, config: OptimConfig) -> float:
    part = _part(name)
    if part == "clicks":
        return config.click_lr_scale
    if part == "fusions":
        return config.fusion_lr_scale
    if part == "head":
        return 1.0
    layers_above = 0 if name.startswith("norm.") else depth - _block(name)
    return config.backbone_lr_scale * config.layer_decay**layers_above


def _block(name: str) -> int:
    """The block of the ViT that a parameter is part of, from 1; 0 for the embeddings."""
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0


def _part(name: str) -> Literal["backbone", "clicks", "fusions", "head"]:
    """What of the network a parameter is part of; the head is all that makes masks of tokens."""
    if name.startswith("patch_embed.coords."):
        return "clicks"
    if name.startswith("fusions."):
        return "fusions"
    if name.startswith(("blocks.", "patch_embed.proj.", "pos_embed.", "norm.")):
        return "backbone"
    return "head"
