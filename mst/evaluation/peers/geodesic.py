"""Geodesic distances (Bai and Sapiro 2007): the kind of method without learning that the paper names."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.graph import MCP_Geometric

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB
from mst.evaluation.peers.opening import opening
from mst.evaluation.peers.seeds import BACKGROUND, OBJECT, border, draw_seeds, enlarge, shrink
from mst.predictor import Segment

LONGEST = 200
"""Longer side of the image on which ways are measured, in pixels."""
RADIUS = 6
"""Of the disks around clicks, in pixels of that image."""
STEP = 2.0
"""What a step of one pixel costs where colours are the same, in levels of 255."""


@opening
def open_geodesic(image: RGB) -> Segment:
    """Give each pixel to the click from which the way to it crosses the least change of colour.

    The border of the image is background where no positive click lies on it: without negative clicks the cut
    is half way to it, and with them what is far from all clicks stays background.
    """
    small = shrink(image, LONGEST)
    costs = STEP + _gradient(small)

    def segment(clicks: Sequence[Click]) -> Mask:
        seeds = draw_seeds(clicks, image, costs.shape, RADIUS)
        away = (seeds == BACKGROUND) | (border(seeds.shape) & (seeds != OBJECT))
        return enlarge(_way(costs, seeds == OBJECT) < _way(costs, away), image)

    return segment


def _way(costs: NDArray[np.float64], starts: Mask) -> NDArray[np.float64]:
    """Cost of the cheapest way from each pixel to a start; infinite without one."""
    if not starts.any():
        return np.full(costs.shape, np.inf)
    return np.asarray(MCP_Geometric(costs).find_costs(np.argwhere(starts))[0])


def _gradient(image: RGB) -> NDArray[np.float64]:
    """Change of colour per pixel, in levels of Lab."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab).astype(np.float32)
    slopes = [cv2.Scharr(lab, cv2.CV_32F, *axis, scale=1 / 32) for axis in ((1, 0), (0, 1))]
    return np.asarray(np.sqrt(np.square(slopes).sum((0, 3))), np.float64)
