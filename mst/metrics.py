"""Intersection over union, and the number of clicks."""

from collections.abc import Sequence

from mst.clicks import Mask


def iou(prediction: Mask, truth: Mask, void: Mask | None = None) -> float:
    """Intersection over union of two (H, W) masks over the pixels that are not void; 1 if both are empty."""
    valid = slice(None) if void is None else ~void
    prediction, truth = prediction[valid], truth[valid]
    union = int((prediction | truth).sum())
    return int((prediction & truth).sum()) / union if union else 1.0


def number_of_clicks(ious: Sequence[float], target: float, max_clicks: int) -> int:
    """NoC of one object: the first click (from 1) whose IoU reaches `target`; `max_clicks` if none does."""
    return next((click for click, value in enumerate(ious, 1) if value >= target), max_clicks)


def never_reached(ious: Sequence[float], target: float) -> bool:
    """Whether an object counts as a failure (NoF): no click reached `target`."""
    return max(ious) < target
