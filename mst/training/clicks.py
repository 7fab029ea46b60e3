"""The clicks that training places on a model's errors (RITM, section 3.2), for a whole batch at once."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mst.clicks import EMPTY_SLOT

_STEPS_BETWEEN_LOOKS = 16  # to look whether a GPU has finished is to wait for it


def next_clicks(prediction: Tensor, truth: Tensor, draws: Tensor) -> Tensor:
    """Draw each sample's click on the larger of its errors, among the pixels well inside it.

    The larger error, of the missed object and the wrongly included background, is the one that reaches
    farther from its border; a tie is a negative click. The pixels well inside are farther from that border
    than half the farthest; the image's border is one too. CPU and GPU choose the same pixels.

    Args:
        prediction: (B, H, W) bool.
        truth: (B, H, W) bool, on the same device.
        draws: (B,) float64 in [0, 1), on the same device: which of its pixels, in row-major order, each
            sample takes.

    Returns:
        (B, 3) float32 as `mst.clicks.click_tensor` packs them: row, col, and 1 for positive, 0 for negative;
        -1 in all three where the prediction is right everywhere.
    """
    errors = torch.stack((truth & ~prediction, prediction & ~truth), 1)
    # On a CPU the batched transform costs 4 times as much as OpenCV with one box after the other where errors
    # are shallow, 10 times where they are deep, 50 times at worst (processor time, 8 samples of 448 x 448).
    squared = _squared_by_box(errors) if errors.device.type == "cpu" else _squared_by_batch(errors)
    missed, wrong = squared.flatten(2).unbind(1)  # (B, H * W)
    deepest_missed, deepest_wrong = missed.amax(1, keepdim=True), wrong.amax(1, keepdim=True)
    is_positive = deepest_missed > deepest_wrong
    deepest = torch.maximum(deepest_missed, deepest_wrong)
    inside = 4 * torch.where(is_positive, missed, wrong) > deepest  # squared distances: a quarter is half
    counted = inside.cumsum(1, dtype=torch.int32)
    count = counted[:, -1:]
    # A draw that was rounded up to 1 takes the last pixel.
    number = torch.minimum((draws[:, None] * count).int(), count - 1)
    pixel = torch.searchsorted(counted, number + 1)
    width = prediction.shape[-1]
    clicks = torch.cat((pixel // width, pixel % width, is_positive), 1).float()
    return torch.where(count > 0, clicks, EMPTY_SLOT)


def _squared_by_box(regions: Tensor) -> Tensor:
    """Squared distance of each region's pixels to the nearest pixel outside it, by OpenCV.

    Args:
        regions: (B, R, H, W) bool, on the CPU; what is beyond the image is outside.

    Returns:
        (B, R, H, W) int32; 0 outside a region.
    """
    padded = F.pad(regions.byte(), (1, 1, 1, 1)).numpy()
    squared = np.zeros(padded.shape, np.int32)
    for index in np.ndindex(*padded.shape[:2]):
        left, top, width, height = cv2.boundingRect(padded[index])
        if not width:
            continue
        box = (*index, slice(top - 1, top + height + 1), slice(left - 1, left + width + 1))
        distance = cv2.distanceTransform(padded[box], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        # Whole numbers, once the last bits are gone, which depend on where the array lies in memory.
        squared[box] = np.rint(np.square(distance))
    return torch.from_numpy(squared)[..., 1:-1, 1:-1]


def _squared_by_batch(regions: Tensor) -> Tensor:
    """Compute the same as `_squared_by_box` on any device, for all regions at once.

    The transform is separable: with the distance g within a pixel's own column, that of (i, j) is
    d^2 = min over k of k^2 + g^2(i, j + k).
    """
    height, width = regions.shape[-2:]
    column = torch.minimum(_rows_below_outside(regions), _rows_below_outside(regions.flip(-2)).flip(-2)) ** 2
    cols = torch.arange(width, dtype=torch.int32, device=regions.device)
    to_border = torch.minimum(cols + 1, width - cols) ** 2
    squared = torch.minimum(column, to_border).flatten(0, 1)  # (B * R, H, W)
    column = column.flatten(0, 1)
    # No pixel is farther from the image's border than `reach`.
    reach = (min(height, width) + 1) // 2
    deep: slice | Tensor = slice(None)
    for first in range(0, reach, _STEPS_BETWEEN_LOOKS):
        if first:  # most regions are shallow: what lies so far away can change the others alone
            deep = (squared.amax((-2, -1)) > first**2).nonzero()[:, 0]
            if not len(deep):
                break
        nearest, columns = squared[deep], column[deep]
        for k in range(max(1, first), min(first + _STEPS_BETWEEN_LOOKS, reach)):
            raised = columns + k**2
            for here, there in ((nearest[..., k:], raised[..., :-k]), (nearest[..., :-k], raised[..., k:])):
                torch.minimum(here, there, out=here)
        squared[deep] = nearest
    return squared.view(regions.shape)


def _rows_below_outside(regions: Tensor) -> Tensor:
    """How many rows each pixel lies below the nearest one of its column that is outside the region."""
    rows = torch.arange(regions.shape[-2], dtype=torch.int32, device=regions.device)[:, None]
    return rows - torch.where(regions, -1, rows).cummax(-2).values
