"""The deployment that holds the model: batched forwards of fixed-size inputs, without any state."""

import asyncio
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ray import serve

from mst.checkpoint import load_model
from mst.config import EvalConfig
from mst.predictor import Crop, Probabilities, forward
from serve.registry import ModelInfo, fetch_model
from serve.settings import ServeSettings

_BATCH_WAIT_SECONDS = 0.004


class Description(NamedTuple):
    """What a caller must know of the model to prepare its inputs."""

    info: ModelInfo
    image_size: int
    eval: EvalConfig


class Segmenter:
    """Answers crops with probabilities.

    Args:
        settings: of the server.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
    """

    def __init__(self, settings: ServeSettings) -> None:
        torch.set_num_threads(max(1, int(settings.cpus_per_replica)))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint, info = fetch_model(settings, Path(folder))
            model, config = load_model(checkpoint)
        self._model = model.eval().to("cuda" if settings.gpus_per_replica else "cpu")
        self._description = Description(info, config.model.image_size, config.eval)
        self.predict.set_max_batch_size(settings.max_batch)  # type: ignore[attr-defined]
        self._warm_up()

    def describe(self) -> Description:
        """Return which model this is."""
        return self._description

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=_BATCH_WAIT_SECONDS)
    async def predict(self, crops: list[Crop]) -> list[Probabilities]:
        """Return each crop's (S, S) probabilities; calls that come together share a forward."""
        return await asyncio.to_thread(forward, self._model, crops)

    def _warm_up(self) -> None:
        size = self._description.image_size
        blank = np.zeros((size, size), np.float32)
        forward(self._model, [Crop(np.zeros((size, size, 3), np.uint8), blank, (), None)])
