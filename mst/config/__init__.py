"""The one tree of settings of an experiment.

A config is built in Python (`pipelines/recipes/`), changed by dotted overrides (`mst.overrides`), and
stored as JSON in every checkpoint. It is frozen; an unknown key or a wrong value is an error that names it.

network     the model
samples     data, augmentation and the clicks of training
learning    losses, optimizer, length and batches
evaluation  how clicks are answered
settings    what they have in common
"""

from math import lcm
from typing import Self

from pydantic import model_validator

from mst.config.evaluation import EvalConfig
from mst.config.learning import LossConfig, OptimConfig, TrainConfig
from mst.config.network import SIZES, Dimensions, ModelConfig
from mst.config.samples import ClickConfig, DataConfig
from mst.config.settings import Natural, Settings

__all__ = [
    "SIZES",
    "ClickConfig",
    "Config",
    "DataConfig",
    "Dimensions",
    "EvalConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "Settings",
    "TrainConfig",
]


class Config(Settings):
    """Everything that determines an experiment."""

    seed: Natural = 0
    """Seed of weights, sample order, augmentation and clicks."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    clicks: ClickConfig = ClickConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _features_can_be_kept(self) -> Self:
        needed = {
            "data.fixed_views": self.data.fixed_views > 0,
            "model.click_entry": self.model.click_entry > 0,
            "train.frozen encoder": "encoder" in self.train.frozen,
            "train.freeze_epochs": self.train.freeze_epochs > 0,
        }
        missing = [name for name, is_there in needed.items() if not is_there]
        if self.train.features_cache and missing:
            raise ValueError(
                "train.features_cache keeps what a frozen encoder says of views that come again: "
                f"set {missing[0]}"
            )
        return self

    @model_validator(mode="after")
    def _smaller_inputs_fit(self) -> Self:
        model, zoomed = self.model, self.eval.smaller_sides(self.model.image_size)
        fitting = lcm(model.patch_size * max(1, model.window), *model.patch_sizes)
        asked = {"eval.zoom_sides": zoomed, "train.sides": self.train.sides}
        named = [(name, side) for name, sides in asked.items() for side in sides]
        for name, side in named:
            if side > model.image_size:
                raise ValueError(f"{name} {side} is larger than image_size {model.image_size}")
            if side < model.image_size and side % fitting:
                raise ValueError(
                    f"{name} {side} is no multiple of {fitting}, as the model's patches and windows ask"
                )
        return self
