"""Which photos to annotate next: those that the model is least sure of."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.pixels.images import RGB
from mst.evaluation.metrics import iou
from mst.model import MST
from mst.predictor import Predictor


class Doubt(NamedTuple):
    """How sure a model is of a photo, over some clicks on it."""

    expected_iou: float
    """Mean of the IoU that its masks would have, were its probabilities right: 0 .. 1."""
    agreement: float
    """Mean IoU of what a first look and a closer look at the same click say: 0 .. 1."""

    @property
    def rank(self) -> float:
        """The larger, the more the photo would teach: 0 .. 1."""
        return 1 - math.sqrt(self.expected_iou * self.agreement)


class Doubts:
    """Asks a model about photos that nobody has annotated.

    Where the objects are is not known, so clicks are put on a grid.

    Args:
        model: that is asked.
        config: of its clicks.
        points: clicks on each photo, each by itself.
    """

    def __init__(self, model: MST, config: EvalConfig, points: int = 9) -> None:
        closer, once = {"zoom_first": True, "cascade": 0}, {"zoom_first": False, "cascade": 0}
        self._closer = Predictor(model, config.model_copy(update=closer))
        self._once = Predictor(model, config.model_copy(update=once))
        self._points, self._threshold = points, config.threshold

    def of(self, image: RGB) -> Doubt:
        """Return what the model says of an image, (H, W, 3)."""
        scores, agreements = [], []
        for click in grid(image.shape[0], image.shape[1], self._points):
            first, closer = (each.predict(image, [click]) for each in (self._once, self._closer))
            scores.append(closer.score(self._threshold))
            agreements.append(iou(first.mask(self._threshold), closer.mask(self._threshold)))
        return Doubt(float(np.mean(scores)), float(np.mean(agreements)))


def grid(height: int, width: int, points: int) -> Iterator[Click]:
    """Yield positive clicks spread evenly over an image, row by row."""
    rows = max(1, round(math.sqrt(points * height / width)))
    for row in range(rows):
        columns = (row + 1) * points // rows - row * points // rows
        for column in range(columns):
            yield Click((2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // (2 * columns), True)


def ordered(doubts: Sequence[Doubt]) -> list[int]:
    """Return the places of photos, the one that would teach most first."""
    return sorted(range(len(doubts)), key=lambda place: -doubts[place].rank)
