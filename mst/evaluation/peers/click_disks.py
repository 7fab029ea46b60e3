"""Clicks alone: the floor that any method which looks at the image should beat."""

from collections.abc import Sequence

import numpy as np

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB
from mst.evaluation.peers.opening import opening
from mst.predictor import Segment


@opening
def open_click_disks(image: RGB) -> Segment:
    """Answer clicks without looking at the image: each pixel follows its nearest click, if one is near.

    Disks around the positive clicks, as far from any click as an eighth of the image's shorter side, less
    the pixels that are nearer to a negative click.
    """
    rows, cols = np.mgrid[: image.shape[0], : image.shape[1]]
    radius = min(image.shape[:2]) / 8

    def segment(clicks: Sequence[Click]) -> Mask:
        distances = np.stack([np.hypot(rows - click.row, cols - click.col) for click in clicks])
        nearest_is_positive = np.array([click.is_positive for click in clicks])[distances.argmin(0)]
        return np.asarray(nearest_is_positive & (distances.min(0) <= radius))

    return segment
