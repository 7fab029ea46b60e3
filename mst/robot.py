"""The robot that clicks in a person's place: at random for training, on the largest error to evaluate."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mst.clicks import Click, Mask
from mst.config import ClickConfig

_ERODED = 0.9  # RITM: this share of samples takes its positive clicks from the eroded mask,
_ERODED_MIN_PIXELS = 10  # if more pixels than this remain
_NEGATIVE_SHARES = (0.1, 0.4, 0.5)  # RITM: background, other objects, border band
_CROSS3 = np.ones((3, 3), np.uint8)


def sample_clicks(
    mask: Mask, others: Callable[[], Mask], rng: np.random.Generator, config: ClickConfig
) -> list[Click]:
    """Draw the clicks that a training sample starts with (RITM, section 3.2; Xu et al. 2016).

    Args:
        mask: the object, (H, W); may be empty, and then there are no positive clicks.
        others: gives the union of the image's other objects, (H, W), where a click falls on it.
        rng: the sample's own generator.
        config: most clicks of each sign, and how fast their number decays.

    Returns:
        Up to `max_clicks` positive clicks, at least one where the object has pixels, then up to
        `max_clicks` negative ones.
    """
    clicks: list[Click] = []
    if mask.any():
        inside = mask
        if rng.random() < _ERODED:
            eroded = cv2.erode(mask.astype(np.uint8), _CROSS3, iterations=3).astype(bool)
            inside = eroded if eroded.sum() > _ERODED_MIN_PIXELS else mask
        clicks += _draw(inside, 1 + _decaying_count(config.max_clicks, config.decay, rng), True, rng)
        if config.centred and rng.random() < config.centred:
            centre = next_click(np.zeros_like(mask), mask)
            assert centre is not None  # the mask has pixels
            clicks[0] = centre
    wanted = _decaying_count(config.max_clicks + 1, config.decay, rng)
    if wanted:
        regions: tuple[Callable[[], Mask], ...] = (
            lambda: ~mask,
            lambda: others() & ~mask,
            lambda: _border_band(mask),
        )
        for region, count in zip(regions, rng.multinomial(wanted, _NEGATIVE_SHARES), strict=True):
            clicks += _draw(region(), int(count), False, rng) if count else []
    return clicks


def next_click(
    prediction: Mask, truth: Mask, void: Mask | None = None, clicked: Sequence[Click] = ()
) -> Click | None:
    """Place the next click of an evaluation: where the largest error is deepest.

    The NoC protocol of f-BRS and RITM, without randomness: exact Euclidean distances to the border of the
    missed object and of the wrongly included background, the image's border included; a tie between the
    two is a negative click; among equally deep pixels it is the first in row-major order.

    Args:
        prediction: (H, W).
        truth: (H, W).
        void: (H, W), pixels that count for nothing; None for no such pixels.
        clicked: earlier clicks, whose pixels are not chosen again.

    Returns:
        The click, or None where every wrong pixel has been clicked already.
    """
    missed, wrong = truth & ~prediction, prediction & ~truth
    if void is not None:
        missed, wrong = missed & ~void, wrong & ~void
    taken = [(round(click.row), round(click.col)) for click in clicked]
    errors = _RoughDepths.of(missed, taken), _RoughDepths.of(wrong, taken)
    reached = max(each.at_least for each in errors)
    best_missed, best_wrong = (each.deepest() if each.at_most >= reached else _NOWHERE for each in errors)
    is_positive = best_missed.squared > best_wrong.squared
    best = best_missed if is_positive else best_wrong
    return Click(best.row, best.col, is_positive) if best.squared else None


class _Deepest(NamedTuple):
    """The first pixel, row-major, of those farthest from a region's border."""

    squared: float
    """Its squared distance; 0 if there is no pixel to choose."""
    row: int
    col: int


_NOWHERE = _Deepest(0, 0, 0)


class _RoughDepths(NamedTuple):
    """Chamfer distances of a region's pixels to its border: a fifth of the exact ones' cost, and within 2 %.

    They choose the few pixels that can be the deepest, for which alone the exact distance is computed.
    """

    region: NDArray[np.uint8]
    """The region's bounding box, one pixel wider: all that matters to the distances within."""
    distance: NDArray[np.float32]
    """Of the same pixels; 0 where there can be no click."""
    top: int
    left: int
    largest: float

    @classmethod
    def of(cls, region: Mask, taken: Sequence[tuple[int, int]]) -> "_RoughDepths":
        """Measure a region of which the pixels `taken` cannot be chosen."""
        left, top, width, height = cv2.boundingRect(region.view(np.uint8))
        box = np.pad(region[top : top + height, left : left + width].view(np.uint8), 1)
        distance = np.asarray(cv2.distanceTransform(box, cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)
        for row, col in taken:
            if top <= row < top + height and left <= col < left + width:
                distance[row - top + 1, col - left + 1] = 0
        return cls(box, distance, top - 1, left - 1, float(distance.max(initial=0)))

    @property
    def at_least(self) -> float:
        """No deepest pixel is less deep."""
        return self.largest / _CHAMFER_RATIO[1]

    @property
    def at_most(self) -> float:
        """No pixel is deeper."""
        return self.largest / _CHAMFER_RATIO[0]

    def deepest(self) -> _Deepest:
        """Find the deepest pixel by exact distance."""
        if not self.largest:
            return _NOWHERE
        share = _CHAMFER_RATIO[0] / _CHAMFER_RATIO[1]
        deep = np.flatnonzero(self.distance >= share * self.largest)  # much faster than in two dimensions
        rows, cols = np.divmod(deep, self.distance.shape[1])
        if self.largest < _ORDERED:
            squared = _SQUARES[np.searchsorted(_CHAMFERS, self.distance[rows, cols])]
        else:
            reach = math.ceil(self.at_most) + 1
            top, left = max(rows.min() - reach, 0), max(cols.min() - reach, 0)
            near = self.region[top : rows.max() + reach + 1, left : cols.max() + reach + 1]
            squared = _squared_distance(near)[rows - top, cols - left]
        first = int(squared.argmax())  # candidates are in row-major order
        return _Deepest(float(squared[first]), int(rows[first]) + self.top, int(cols[first]) + self.left)


_CHAMFER_RATIO = (0.982, 1.0195)  # of OpenCV's 5 x 5 chamfer distance to the exact one, least and most
_ORDERED = 6.9  # chamfer distances below this tell all exact ones apart


def _chamfer_table() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Chamfer distances below `_ORDERED`, each a little more than OpenCV's, and the squared exact ones."""
    straight, diagonal, knight = 1, 1.4, 2.1969  # OpenCV's weights of its 5 x 5 mask
    pairs = set()
    for far in range(1, 8):
        for near in range(far + 1):
            knights = min(near, far - near)
            rest = (far - 2 * near) * straight if 2 * near <= far else (2 * near - far) * diagonal
            pairs.add((knights * knight + rest, far * far + near * near))
    table = np.array(sorted(pairs), np.float32)
    return table[:, 0] + 1e-3, table[:, 1]


_CHAMFERS, _SQUARES = _chamfer_table()


def _squared_distance(region: NDArray[Any]) -> NDArray[np.float32]:
    """Exact squared distance of each pixel of a region to the nearest pixel outside it."""
    distance = cv2.distanceTransform(region.astype(np.uint8, copy=False), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV's last bits depend on where the array lies in memory, and would decide between ties; squared
    # distances are whole numbers.
    return np.asarray(np.rint(np.square(distance)), np.float32)


def _decaying_count(choices: int, decay: float, rng: np.random.Generator) -> int:
    """Draw one of 0 .. choices - 1, each `decay` times as likely as the one before."""
    weights = decay ** np.arange(choices)
    return int(rng.choice(choices, p=weights / weights.sum()))


def _border_band(mask: Mask) -> Mask:
    """The background within about 0.1 * sqrt(area) pixels of the object (RITM's border strategy)."""
    if not mask.any():
        return np.zeros_like(mask)
    width = math.ceil(0.1 * math.sqrt(mask.sum()))
    left, top, columns, rows = cv2.boundingRect(mask.astype(np.uint8))
    near = np.s_[max(top - width, 0) : top + rows + width, max(left - width, 0) : left + columns + width]
    distance = cv2.distanceTransform((~mask[near]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    band = np.zeros_like(mask)
    band[near] = (distance > 0) & (distance <= width)
    return band


def _draw(region: Mask, count: int, is_positive: bool, rng: np.random.Generator) -> list[Click]:
    pixels = np.flatnonzero(region) if count else np.empty(0, np.intp)
    if not len(pixels):
        return []
    drawn = pixels[rng.integers(len(pixels), size=count)]
    return [
        Click(int(pixel // region.shape[1]), int(pixel % region.shape[1]), is_positive) for pixel in drawn
    ]
