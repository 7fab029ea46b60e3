"""Random walker (Grady 2006), scikit-image's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import random_walker

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB
from mst.evaluation.peers.opening import opening
from mst.evaluation.peers.seeds import BACKGROUND, OBJECT, UNKNOWN, Seeds, border, draw_seeds, enlarge, shrink
from mst.predictor import Segment

LONGEST = 200
"""Longer side of the image that is walked on, in pixels."""
RADIUS = 5
"""Of the disks around clicks, in pixels of that image."""
BETA = 2000.0
"""How hard edges are to cross."""


@opening
def open_random_walker(image: RGB) -> Segment:
    """Give each pixel to the click that a random walk from it reaches first, where edges are hard to cross.

    The border of the image is background where no click lies on it, so that there is something to walk to
    before the first negative click; to keep it after that needs fewer clicks.
    """
    small = shrink(image, LONGEST)

    def segment(clicks: Sequence[Click]) -> Mask:
        seeds = draw_seeds(clicks, image, small.shape[:2], RADIUS)
        seeds[border(seeds.shape) & (seeds == UNKNOWN)] = BACKGROUND
        return enlarge(_walk(small, seeds), image)

    return segment


def _walk(image: RGB, seeds: Seeds) -> NDArray[Any]:
    """Probability of each pixel to belong to the object."""
    if len(np.unique(seeds)) < 3:  # nothing is unknown, or there is one kind of seed alone
        return np.asarray(seeds == OBJECT)
    labels = np.select([seeds == OBJECT, seeds == BACKGROUND], [1, 2], 0)
    pixels = image / 255
    if image.min() == image.max():  # scikit-image divides by the deviation
        pixels += np.linspace(0, 1e-6, pixels.size).reshape(pixels.shape)
    # Solved directly: no slower at this size, and without a tolerance.
    return np.asarray(
        random_walker(pixels, labels, BETA, mode="bf", return_full_prob=True, channel_axis=-1)[0]
    )
