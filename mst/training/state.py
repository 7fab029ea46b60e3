"""Everything that a training is between two steps."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mst.checkpoint import initialize
from mst.config import Config
from mst.model import MST
from mst.optim import build_optimizer, restore_optimizer

_PLAIN = ("step", "validated", "best_score", "stale", "skipped_samples", "bad_steps", "run_id")


@dataclass
class TrainingState:
    """What a training consists of, and how far it is.

    That is all there is to resume from: the learning rate, the order of samples, their augmentation and
    clicks, and dropout are functions of `seed` and `step`, so that no scheduler, no position of a sampler and
    no generator has a state of its own.
    """

    model: MST
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Of the loss in fp16; does nothing in other precisions."""
    average: dict[str, Tensor] | None
    """Running average of the weights; None where none is kept."""
    first: dict[str, Tensor] | None = None
    """The weights that the training began with; None where they have no share in what it ends with."""
    anchor: float = 0.0
    """That share (`optim.anchor`)."""
    step: int = 0
    """The next step to take, from 0, over all epochs."""
    validated: int = 0
    """The step of the last validation."""
    best_score: float | None = None
    """The highest of all validations."""
    stale: int = 0
    """Validations since the best one."""
    skipped_samples: int = 0
    """Samples so far that another image replaced because theirs was broken, over all workers."""
    bad_steps: int = 0
    """Last steps in a row that were left out, their loss or gradient being no finite number."""
    run_id: str | None = None
    """Of this training in the experiment tracker, which a restart goes on with."""

    def weights(self) -> dict[str, Tensor]:
        """The weights to validate, save and use."""
        learned = self.average if self.average is not None else self.model.state_dict()
        if self.first is None:
            return learned
        return {name: value.lerp(self.first[name], self.anchor) for name, value in learned.items()}

    def is_finished(self, config: Config) -> bool:
        """Whether all steps are taken, or validations have not become better for `train.patience` times."""
        has_stalled = 0 < config.train.patience <= self.stale
        return self.step >= config.train.steps or has_stalled

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` resumes from: tensors, numbers, strings and containers of them."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average,
            "first": self.first,
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        restore_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:  # empty for one that does nothing
            self.scaler.load_state_dict(state["scaler"])
        for name in ("average", "first"):
            mine: dict[str, Tensor] | None = getattr(self, name)
            if mine is not None:  # what the run did not keep so far begins with its weights
                kept = state.get(name) or state["model"]
                for each, value in mine.items():
                    value.copy_(kept[each])
        for name in _PLAIN:
            setattr(self, name, state[name])


def new_state(config: Config, device: torch.device) -> tuple[TrainingState, str]:
    """Make the state of a training that has not begun.

    Returns:
        The state, and a line that says what its weights are.

    Raises:
        CheckpointError: `train.init` cannot be read or does not fit.
    """
    torch.manual_seed(config.seed)
    model = MST(config.model, recompute=config.train.recompute)
    origin = "random weights"
    if config.train.init is not None:
        origin = initialize(model, config.train.init, config.train.reset)
    model.to(device)
    average = copy.deepcopy(model.state_dict()) if config.optim.ema else None
    first = copy.deepcopy(model.state_dict()) if config.optim.anchor else None
    if config.train.compile:
        model.compile(dynamic=False)  # a graph for each of `train.sides`
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    optimizer = build_optimizer(model, config.optim)
    return TrainingState(model, optimizer, scaler, average, first, config.optim.anchor), origin
