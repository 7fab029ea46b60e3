"""Intersection over union, of masks and of their boundaries, and the number of clicks."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from mst.clicks import Mask

_SQUARE3 = np.ones((3, 3), np.uint8)


def iou(prediction: Mask, truth: Mask, void: Mask | None = None) -> float:
    """Intersection over union of two (H, W) masks over the pixels that are not void; 1 if both are empty."""
    if void is not None:
        prediction, truth = prediction & ~void, truth & ~void
    union = int(np.count_nonzero(prediction | truth))
    return int(np.count_nonzero(prediction & truth)) / union if union else 1.0


def boundary_iou(prediction: Mask, truth: Mask, void: Mask | None = None, dilation: float = 0.02) -> float:
    """Boundary IoU (Cheng et al., CVPR 2021): the IoU of the pixels of each mask that lie near its contour.

    Near is within d pixels of the background, in rows and in columns; outside the image there is background.
    Where IoU asks for the bulk of a large object, this asks for its outline; the two agree on small objects.

    Args:
        prediction: (H, W).
        truth: (H, W).
        void: (H, W), background of both masks, so that what is predicted there changes nothing; None for
            no such pixels.
        dilation: d as a share of the image's diagonal; d is at least one pixel.

    Returns:
        0 .. 1; 1 if both masks are empty.
    """
    return iou(*(near_contour(mask, void, dilation) for mask in (prediction, truth)))


def near_contour(mask: Mask, void: Mask | None = None, dilation: float = 0.02) -> Mask:
    """Return which pixels of a mask (H, W) lie near its contour, as `boundary_iou` compares them.

    A truth that many predictions are compared with needs it once.
    """
    distance = max(1, round(dilation * math.hypot(*mask.shape)))
    near = np.zeros(mask.shape, bool)
    mask = mask if void is None else mask & ~void
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if width and height:
        box = np.s_[top : top + height, left : left + width]  # beyond it is background, as beyond the image
        inside = mask[box].astype(np.uint8)
        eroded = cv2.erode(
            inside, _SQUARE3, iterations=distance, borderType=cv2.BORDER_CONSTANT, borderValue=0
        )
        near[box] = inside > eroded
    return near


def number_of_clicks(ious: Sequence[float], target: float, max_clicks: int) -> int:
    """NoC of one object: the first click (from 1) whose IoU reaches `target`; `max_clicks` if none does."""
    return next((click for click, value in enumerate(ious, 1) if value >= target), max_clicks)


def never_reached(ious: Sequence[float], target: float) -> bool:
    """Whether an object counts as a failure (NoF): no click reached `target`."""
    return max(ious) < target
