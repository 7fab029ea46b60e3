"""Zoom-in: the box of the image that the model looks at (f-BRS, RITM): pure functions on a box."""

from collections.abc import Sequence
from typing import NamedTuple

from mst.clicks import Click
from mst.config import EvalConfig

_STALE_IOU = 0.5  # a box is kept until the object's new box overlaps it less than this


class Box(NamedTuple):
    """Pixels top .. bottom - 1 and left .. right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows of the box."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns of the box."""
        return self.right - self.left

    def contains(self, click: Click) -> bool:
        """Whether a click lies on one of the box's pixels."""
        row, col = round(click.row), round(click.col)
        return self.top <= row < self.bottom and self.left <= col < self.right

    def intersection(self, other: "Box") -> "Box":
        """What both have; a side without pixels, or with less, where that is nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Box(top, left, min(self.bottom, other.bottom), min(self.right, other.right))

    def counted_from(self, other: "Box") -> "Box":
        """The same pixels, counted from another box's first row and column."""
        top, left = self.top - other.top, self.left - other.left
        return Box(top, left, top + self.height, left + self.width)

    def slices(self) -> tuple[slice, slice]:
        """Index of the box in an (H, W, ...) array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def zoom_box(
    extent: Box | None,
    shape: tuple[int, int],
    clicks: Sequence[Click],
    previous: Box | None,
    config: EvalConfig,
) -> Box:
    """Choose what part of the image the next forward sees.

    The box of the predicted object and the positive clicks, widened, or the whole image where nothing is
    predicted; but the previous box as long as it still fits: its IoU with the new one is at least 0.5 and it
    holds all positive clicks.

    Args:
        extent: of the last mask; None where it is empty.
        shape: H and W of the image.
        clicks: all clicks so far, in the image's pixels.
        previous: the box of the last zoom; None if there was none.
        config: how far the box is widened, and its smallest side.
    """
    height, width = shape
    positive = [click for click in clicks if click.is_positive]
    box = Box(0, 0, height, width)
    if extent is not None:
        rows = [extent.top, extent.bottom - 1, *(round(click.row) for click in positive)]
        cols = [extent.left, extent.right - 1, *(round(click.col) for click in positive)]
        top, bottom = _widen(min(rows), max(rows) + 1, height, config)
        left, right = _widen(min(cols), max(cols) + 1, width, config)
        box = Box(top, left, bottom, right)
    if previous and box_iou(box, previous) >= _STALE_IOU and all(map(previous.contains, positive)):
        return previous
    return box


def box_iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    both = one.intersection(other)
    intersection = max(both.height, 0) * max(both.width, 0)
    return intersection / (one.height * one.width + other.height * other.width - intersection)


def _widen(start: int, end: int, limit: int, config: EvalConfig) -> tuple[int, int]:
    centre, half = (start + end) / 2, max((end - start) * config.zoom_expand, config.zoom_min) / 2
    return max(0, round(centre - half)), min(limit, round(centre + half))
