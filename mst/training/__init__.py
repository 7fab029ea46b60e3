"""Iterative training on clicks (RITM, section 3.2), in plain torch: alone, or in a `torch.distributed` group."""

from mst.training.loop import (
    EpochReport,
    StepReport,
    TrainingState,
    fit,
    new_state,
    simulate_clicks,
    train_step,
    validation_share,
)

__all__ = [
    "EpochReport",
    "StepReport",
    "TrainingState",
    "fit",
    "new_state",
    "simulate_clicks",
    "train_step",
    "validation_share",
]
