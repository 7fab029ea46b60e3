"""Clicks: their type, what is refused, and the tensors and maps that a model reads."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mst.errors import ClickError

Mask = NDArray[np.bool_]
"""Object mask, (H, W)."""

EMPTY_SLOT = -1.0
"""Label of a row of a click tensor that holds no click."""


@dataclass(frozen=True)
class Click:
    """A click in pixel coordinates: integers name pixel centres, row 0 is the top, col 0 the left."""

    row: float
    col: float
    is_positive: bool


def as_click(click: Any) -> Click:
    """Return a click in Python's own numbers; NumPy's are taken for what they are.

    Raises:
        ClickError: it is no `Click`, or has other values than two numbers and a truth.
    """
    if not isinstance(click, Click):
        raise ClickError(f"{click!r} is no Click, as in Click(row=80, col=120, is_positive=True)")
    row, col, is_positive = click.row, click.col, click.is_positive
    if isinstance(is_positive, np.bool_):
        is_positive = bool(is_positive)
    if type(is_positive) is not bool:
        raise ClickError(f"is_positive of a click is {is_positive!r}, neither True nor False")
    return Click(_plain("row", row), _plain("col", col), is_positive)


def as_clicks(clicks: Any) -> list[Click]:
    """Return a list of clicks, each as `as_click` says.

    Raises:
        ClickError: it is no list of clicks.
    """
    if not isinstance(clicks, Iterable):
        raise ClickError(f"{clicks!r} is no list of clicks, as in [Click(row=80, col=120, is_positive=True)]")
    return [as_click(each) for each in clicks]


def _plain(name: str, value: Any) -> float:
    number = value.item() if isinstance(value, np.generic) else value
    if (
        isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) <= 2**53
    ):  # NaN fails
        raise ClickError(f"{name} of a click is {value!r}, not a number of pixels")
    return number


def check_clicks(clicks: Sequence[Click], height: int, width: int, *, needs_positive: bool = True) -> None:
    """Refuse clicks that no mask can be predicted from.

    Args:
        clicks: all clicks on one object.
        height: of the image in pixels.
        width: of the image in pixels.
        needs_positive: whether nothing but a positive click says where the object is.

    Raises:
        ClickError: there is no positive click, or one lies outside the image of `height` x `width` pixels.
    """
    for number, click in enumerate(clicks, 1):
        # NaN fails the comparison and is refused with the rest.
        if not (-0.5 <= click.row < height - 0.5 and -0.5 <= click.col < width - 0.5):
            raise ClickError(
                f"click {number} at row {click.row}, col {click.col} lies outside the image "
                f"of {height} rows and {width} columns"
            )
    if needs_positive and not any(click.is_positive for click in clicks):
        raise ClickError("at least one positive click is needed to say where the object is")


def click_tensor(clicks: Iterable[Sequence[Click]], slots: int) -> Tensor:
    """Pack each sample's clicks into the rows that the model reads.

    Args:
        clicks: the clicks of each of B samples, at most `slots` each.
        slots: number of rows N for each sample; the ones left over are marked empty.

    Returns:
        (B, N, 3) float32: row, col, and 1 for positive, 0 for negative, -1 for an empty row.
    """
    batch = list(clicks)
    packed = torch.full((len(batch), slots, 3), EMPTY_SLOT)
    for sample, each in enumerate(batch):
        if len(each) > slots:
            raise ClickError(f"{len(each)} clicks do not fit into {slots} slots")
        if each:
            rows = [(click.row, click.col, float(click.is_positive)) for click in each]
            packed[sample, : len(rows)] = torch.tensor(rows)
    return packed


def click_maps(clicks: Tensor, height: int, width: int, radius: float) -> Tensor:
    """Draw clicks as disks (MST section III-A; SimpleClick: squared distance <= 5^2).

    Only the pixels around each click are computed: the cost does not grow with the image.

    Args:
        clicks: (B, N, 3) as `click_tensor` packs them; clicks outside the image draw what reaches into it.
        height: H in pixels.
        width: W in pixels.
        radius: of the disks, in pixels.

    Returns:
        (B, 2, H, W) of zeros and ones; channel 0 holds positive clicks, channel 1 negative ones.
    """
    rows, cols, labels = clicks.float().unbind(-1)
    reach = math.ceil(radius) + 1  # one more for clicks between pixel centres
    offsets = torch.arange(-reach, reach + 1, device=clicks.device)
    pixel_rows = (rows.round()[..., None] + offsets)[..., :, None]  # (B, N, K, 1)
    pixel_cols = (cols.round()[..., None] + offsets)[..., None, :]  # (B, N, 1, K)
    squared_distance = (pixel_rows - rows[..., None, None]) ** 2 + (pixel_cols - cols[..., None, None]) ** 2
    drawn = (
        (squared_distance <= radius**2)
        & ((pixel_rows >= 0) & (pixel_rows < height))
        & ((pixel_cols >= 0) & (pixel_cols < width))
        & (labels != EMPTY_SLOT)[..., None, None]
    )
    channel = (labels == 0)[..., None, None]
    pixel = (channel * height + pixel_rows) * width + pixel_cols
    # What is not drawn goes to one spare pixel behind the maps.
    pixel = torch.where(drawn, pixel, 2 * height * width).long().flatten(1)
    maps = torch.zeros(clicks.shape[0], 2 * height * width + 1, device=clicks.device)
    return maps.scatter(1, pixel, 1.0)[:, :-1].view(-1, 2, height, width)
