"""A model that is ready to answer: loaded, tried and warmed up; its forwards have few shapes."""

import logging
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mst.checkpoint import load_model
from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.pixels.images import RGB
from mst.devices import has_bf16
from mst.encodings import Encodings
from mst.errors import CheckpointError, MSTError
from mst.model import MST
from mst.model.fusion import StageTrace
from mst.predictor import Crop, outputs, to_probabilities
from serve.inference.encoder import choose_encoder
from serve.inference.registry import fetch_model
from serve.settings import ServeSettings
from serve.wire.models import ModelInfo

_log = logging.getLogger("ray.serve.model")

SLOTS = (16, 256)
"""Click rows of a forward: the fewest that hold all clicks; requests have at most 200, and a box five."""

_CLOSE = 0.02  # mean difference of bf16's probabilities to fp32's on the trial that is taken for exact enough


class Version(NamedTuple):
    """A model that is ready to answer, and what a caller must know to prepare its inputs."""

    address: str
    """In the registry, or its folder."""
    info: ModelInfo
    image_size: int
    eval: EvalConfig
    encodes: bool
    """Whether what it makes of an image is kept for all clicks on it."""


class Selected(NamedTuple):
    """What one fusion module chose for the last click: tokens of one of the extra scales."""

    patch_size: int
    columns: int
    """Of the scale's grid of tokens."""
    indices: NDArray[np.int64]
    """(K,), row-major in the grid, the most similar first (MST eq. 4)."""
    scores: NDArray[np.float32]
    """(K,), similarity to the clicked tokens (MST eq. 3)."""


class Answer(NamedTuple):
    """What a forward says of one crop."""

    logits: NDArray[np.float32]
    """(s, s), as the head makes them; `mst.predictor.to_probabilities` is what (S, S) they mean."""
    selected: tuple[Selected, ...]
    """One for each fusion module."""
    batch: int
    """Crops that shared the forward."""
    seconds: float
    """That the forward took."""


class ServedModel:
    """A model in this process.

    Args:
        settings: of the server; their model is pinned.

    Raises:
        CheckpointError: there is no such model, its files are damaged, or what it answers is no mask.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._sizes = _powers_of_two(settings.max_batch)
        self._bf16 = False
        try:
            with tempfile.TemporaryDirectory() as folder:
                checkpoint, info = fetch_model(settings, Path(folder))
                model, config = load_model(checkpoint)
            network = config.model
            self.version = Version(
                settings.model, info, network.image_size, config.eval, encodes=network.click_entry > 0
            )
            self._model = model.eval().to("cuda" if settings.gpus_per_replica else "cpu")
            side = self.version.image_size
            self._sides = (*self.version.eval.smaller_sides(side), side)
            self._prepare(settings)
            self._warm_up(settings.compile)
        except MSTError:
            raise
        except Exception as error:  # of the registry, of its files, of the device: all end in the same way
            _log.exception("%s", settings.model)
            raise CheckpointError(f"{settings.model} cannot be served; the log says why") from error

    def answer(self, crops: Sequence[Crop]) -> list[Answer]:
        """Run the network on at most `max_batch` crops.

        All have one side. The batch is filled up to a power of two: each size has kernels of its own, whose
        sums differ in the last bits, and only few sizes can be compiled and warmed up.
        """
        start = time.perf_counter()
        size = next(size for size in self._sizes if size >= len(crops))
        slots = next(slots for slots in SLOTS if slots >= max(len(crop.clicks) for crop in crops))
        logits, selected = self._run([*crops, *[crops[-1]] * (size - len(crops))], slots)
        seconds = time.perf_counter() - start
        return [
            Answer(logits[number], tuple(each[number] for each in selected), len(crops), seconds)
            for number in range(len(crops))
        ]

    @torch.inference_mode()
    def encode(self, image: RGB) -> None:
        """Encode a crop (S, S, 3), for calls to come."""
        with torch.autocast(self._model.mean.device.type, torch.bfloat16, enabled=self._bf16):
            self._encodings.of([image])

    def _prepare(self, settings: ServeSettings) -> None:
        """Choose precision and encoder, by trials."""
        self._model.settle(self._sides)
        self._bf16 = self._chooses_bf16(settings)
        encode = choose_encoder(self._model, self._sides, settings)
        # One crop after the other: what is known of one depends on no other, to the last bit.
        self._encodings = Encodings(self._model, settings.encoding_bytes, encode, at_once=1)
        if self._bf16:
            _hold_bf16(self._model)

    @torch.inference_mode()
    def _run(self, crops: Sequence[Crop], slots: int) -> tuple[NDArray[np.float32], list[list[Selected]]]:
        device = self._model.mean.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._bf16):
            output = outputs(self._model, crops, slots, self._encodings)
        selected = [_selected(stage) for stage in output.stages]
        return output.logits[:, 0].float().cpu().numpy(), selected

    def _chooses_bf16(self, settings: ServeSettings) -> bool:
        """Whether forwards run in bf16: where the device has it, and its trial is almost fp32's."""
        exact = self._tried()
        if settings.precision == "fp32" or (
            settings.precision == "auto" and not has_bf16(self._model.mean.device)
        ):
            return False
        self._bf16 = True
        difference = float(np.abs(self._tried() - exact).mean())
        return settings.precision == "bf16" or difference <= _CLOSE

    def _warm_up(self, compiled: bool) -> None:
        """Run each shape once: the first forward of a shape is slow, and none is left for a user."""
        if compiled:
            self._model.compile(dynamic=False)
        for side, size in product(self._sides, self._sizes):
            for slots in SLOTS if compiled else SLOTS[:1]:
                self._run([self._trial(side)] * size, slots)

    def _trial(self, size: int) -> Crop:
        """A bright disk on noise with a click on it: a picture that any model must answer with numbers."""
        rows, cols = np.ogrid[:size, :size]
        pixels = np.random.default_rng(0).integers(0, 100, (size, size, 3), dtype=np.uint8)
        pixels[(rows - size / 2) ** 2 + (cols - size / 2) ** 2 < (size / 4) ** 2] += 120
        return Crop(pixels, None, (Click(size / 2, size / 2, True),), None)

    def _tried(self) -> NDArray[np.float32]:
        """The trial's probabilities, (S, S)."""
        self._encodings = Encodings(self._model)  # none of another precision
        size = self.version.image_size
        logits, _ = self._run([self._trial(size)], SLOTS[0])
        probabilities = to_probabilities(torch.from_numpy(logits)[None], size)[0]
        if not np.isfinite(probabilities).all():
            info = self.version.info
            raise CheckpointError(f"{info.name} version {info.version}: its probabilities are no numbers")
        return probabilities


def _hold_bf16(model: MST) -> None:
    """Round weights once that autocast would round at each forward: the same answers, a tenth sooner."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.bfloat16()


def _selected(stage: StageTrace) -> list[Selected]:
    """What a fusion module chose for each sample."""
    by_scale = []
    for selection in stage.selections:
        scores = selection.scores.gather(1, selection.indices).float().cpu().numpy()
        by_scale.append((selection, selection.indices.cpu().numpy(), scores))
    found = []
    for number, scale in enumerate(stage.chosen.tolist()):
        selection, indices, scores = by_scale[scale]
        found.append(Selected(selection.patch_size, selection.grid[1], indices[number], scores[number]))
    return found


def _powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to the first that is not below `most`."""
    return tuple(2**power for power in range((most - 1).bit_length() + 1))
