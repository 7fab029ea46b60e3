"""When a sweep has cost enough."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import Stopper

from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import Record, TrialRecord


@dataclass(frozen=True)
class Limits:
    """What a sweep may cost; None for no limit."""

    hours: float | None = None
    """From the start of the command; what it took before it was resumed does not count."""
    samples: int | None = None
    """That all trials have trained on."""
    gpu_hours: float | None = None
    """Of all trials."""


@dataclass(frozen=True)
class Spent:
    """What a sweep has cost so far."""

    samples: int
    gpu_hours: float


def spent(plan: Plan, trials: Sequence[TrialRecord]) -> Spent:
    """Add up what trials have cost, as far as their last validations tell."""
    train, gpus = plan.config.train, plan.resources.wanted()["GPU"]
    return Spent(
        samples=sum(each.validations for each in trials) * train.validate_every * train.samples_per_epoch,
        gpu_hours=sum(each.seconds for each in trials) / 3600 * gpus,
    )


class Budget(Stopper):
    """Ends a sweep when one of its limits is reached; trials that run then can go on when it is resumed.

    Args:
        plan: of the sweep.
        limits: of it.
        record: of its trials.
    """

    def __init__(self, plan: Plan, limits: Limits, record: Record) -> None:
        self._plan, self._limits, self._record = plan, limits, record
        self._start = time.monotonic()
        self._used = spent(plan, record.trials())
        self.reached: str | None = None
        """Which limit it was."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Stop no single trial."""
        return False

    def add_up(self) -> None:
        """Count what the record holds by now."""
        self._used = spent(self._plan, self._record.trials())

    def stop_all(self) -> bool:
        """Whether the sweep has to end now."""
        limits, hours = self._limits, (time.monotonic() - self._start) / 3600
        if limits.hours is not None and hours >= limits.hours:
            self.reached = f"{limits.hours:g} hours"
        elif limits.samples is not None and self._used.samples >= limits.samples:
            self.reached = f"{limits.samples} samples"
        elif limits.gpu_hours is not None and self._used.gpu_hours >= limits.gpu_hours:
            self.reached = f"{limits.gpu_hours:g} GPU hours"
        return self.reached is not None
