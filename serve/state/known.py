"""What is known of an object: what came before its clicks, and what the model said after them."""

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mst.clicks import Click, Mask
from mst.predictor import Prediction, paste, start_from, to_probabilities
from mst.zoom import Box
from serve.inference.model import Selected

About = tuple[str, str, str]
"""Image, version and its weights, and start: what a prediction depends on, beside the clicks."""


class Start(NamedTuple):
    """What is known of an object before the first click of its annotator."""

    key: str
    """Names it in the cache."""
    clicks: tuple[Click, ...]
    """That come before the annotator's, and are given to the model all at once."""
    prediction: Prediction | None


NOTHING = Start("", (), None)


def start_of(prior: Mask | None, box: Box | None, height: int, width: int) -> Start:
    """Begin with a mask to be corrected, or a box around the object, or both.

    A box is a positive click on its centre and negative ones diagonally beyond its corners, where these lie
    in the image: no pixel there belongs to the object.
    """
    clicks: list[Click] = []
    if box is not None:
        clicks = [Click((box.top + box.bottom - 1) // 2, (box.left + box.right - 1) // 2, True)]
        corners = [(row, col) for row in (box.top - 1, box.bottom) for col in (box.left - 1, box.right)]
        clicks += [Click(*each, False) for each in corners if 0 <= each[0] < height and 0 <= each[1] < width]
    if prior is None:
        return Start(f"{box}" if box else "", tuple(clicks), None)
    digest = hashlib.sha256(np.packbits(prior).tobytes()).hexdigest()
    return Start(f"{digest} {box}", tuple(clicks), start_from(prior))


class Known(NamedTuple):
    """What the model said after some clicks: few bytes, however large the image is."""

    clicks: tuple[Click, ...]
    box: Box | None
    """Of the crop that it read."""
    side: int
    """Of that crop, in pixels."""
    logits: NDArray[np.float32]
    """(s, s), as the head makes them."""
    selected: tuple[Selected, ...]
    """What it chose for the last click."""

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.logits.nbytes + sum(each.indices.nbytes + each.scores.nbytes for each in self.selected)

    def paste(self, shape: tuple[int, int]) -> Prediction:
        """Return what it says of the image, which has `shape` H and W."""
        logits = torch.tensor(self.logits)[None, None]  # a copy: what comes from Ray cannot be written to
        return paste(self.box, to_probabilities(logits, self.side)[0], self.clicks, shape)
