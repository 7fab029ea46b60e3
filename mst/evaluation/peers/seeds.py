"""What the methods that grow from clicks have in common: a smaller image, and the clicks as seeds on it."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB, resize

OBJECT, BACKGROUND, UNKNOWN = 1, -1, 0

Seeds = NDArray[np.int8]
"""(H, W) of `OBJECT`, `BACKGROUND` and `UNKNOWN`."""


def shrink(image: RGB, longest: int) -> RGB:
    """Resize an image whose longer side exceeds `longest` pixels to that, at least one pixel each way."""
    height, width = image.shape[:2]
    scale = min(1, longest / max(height, width))
    return resize(image, max(1, round(height * scale)), max(1, round(width * scale)))


def draw_seeds(clicks: Sequence[Click], image: RGB, shape: tuple[int, int], radius: int) -> Seeds:
    """Draw clicks as disks that say what is sure.

    Args:
        clicks: in pixels of `image`; where disks overlap, the last one counts, but every click its own pixel.
        image: (H, W, 3), full size.
        shape: of the seeds, in pixels.
        radius: of the disks, in pixels of the seeds; 0 for single pixels.
    """
    scale = (shape[0] / image.shape[0], shape[1] / image.shape[1])
    seeds = np.zeros(shape, np.int8)
    for size in (radius, 0):
        for click in clicks:
            centre = [
                round(min(max((place + 0.5) * by - 0.5, 0), side - 1))
                for place, by, side in zip((click.row, click.col), scale, shape, strict=True)
            ]
            cv2.circle(seeds, centre[::-1], size, OBJECT if click.is_positive else BACKGROUND, cv2.FILLED)
    return seeds


def border(shape: tuple[int, int]) -> Mask:
    """The outermost pixels of an image."""
    mask = np.ones(shape, bool)
    mask[1:-1, 1:-1] = False
    return mask


def enlarge(share: NDArray[Any], image: RGB) -> Mask:
    """Bring a small image's mask, or shares 0 .. 1, back to the size of `image`."""
    return np.asarray(resize(share.astype(np.float32), *image.shape[:2]) > 0.5)
