"""Iterative training on clicks (RITM, section 3.2), in plain torch.

    python -m mst.training --help          # in one process, without Ray

Inside a `torch.distributed` process group it shares each batch over the workers.
"""

from mst.training.loop import EpochReport, StepReport, fit, gather, validation_share
from mst.training.state import TrainingState, new_state
from mst.training.step import simulate_clicks, train_step

__all__ = [
    "EpochReport",
    "StepReport",
    "TrainingState",
    "fit",
    "gather",
    "new_state",
    "simulate_clicks",
    "train_step",
    "validation_share",
]
