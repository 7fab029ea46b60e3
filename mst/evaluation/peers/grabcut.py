"""GrabCut (Rother et al. 2004), OpenCV's."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB
from mst.evaluation.peers.opening import opening
from mst.evaluation.peers.seeds import BACKGROUND, OBJECT, Seeds, draw_seeds, enlarge, shrink
from mst.predictor import Segment

LONGEST = 400
"""Longer side of the image that is cut, in pixels."""
RADIUS = 3
"""Of the disks around clicks that are sure, in pixels of that image."""
REACH = 0.2
"""How far from the positive clicks the object is looked for first, as a share of the image's sides."""
ITERATIONS = 2
"""Of learning colours and cutting; the cost is theirs, and more of them hardly change the cut."""


@opening
def open_grabcut(image: RGB) -> Segment:
    """Cut colours of the object from colours of the background, along edges, as the clicks demand.

    Disks around the clicks are sure. The colours are learned at first from a box around the positive clicks,
    less what is nearer to a negative click, against the rest; all of it may change sides. What hangs together
    with no positive click is left out.
    """
    small = shrink(image, LONGEST)

    def segment(clicks: Sequence[Click]) -> Mask:
        seeds = draw_seeds(clicks, image, small.shape[:2], RADIUS)
        return enlarge(_clicked_parts(_cut(small, seeds), seeds), image)

    return segment


def _cut(image: RGB, seeds: Seeds) -> Mask:
    labels = np.where(_prior(seeds), cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[seeds == OBJECT], labels[seeds == BACKGROUND] = cv2.GC_FGD, cv2.GC_BGD
    is_object = labels & 1  # sure or probable
    if is_object.min() != is_object.max():  # colours of both are needed
        cv2.setRNGSeed(0)  # of the k-means that the colour models start from
        colours = np.zeros((1, 65)), np.zeros((1, 65))  # two mixtures of Gaussians, to be learned
        cv2.grabCut(image, labels, (0, 0, 0, 0), *colours, ITERATIONS, cv2.GC_INIT_WITH_MASK)
    return np.asarray(labels & 1 == 1)


def _prior(seeds: Seeds) -> Mask:
    """The box around the positive seeds that `REACH` widens, less what is nearer to a negative one."""
    near = np.zeros(seeds.shape, bool)
    rows, cols = np.nonzero(seeds == OBJECT)
    if not len(rows):
        return near
    down, right = (int(np.ceil(REACH * side)) for side in seeds.shape)
    near[
        max(rows.min() - down, 0) : rows.max() + down + 1, max(cols.min() - right, 0) : cols.max() + right + 1
    ] = True
    if (seeds == BACKGROUND).any():
        near &= _distance(seeds == OBJECT) <= _distance(seeds == BACKGROUND)
    return near


def _distance(seeds: Mask) -> NDArray[np.float32]:
    return np.asarray(cv2.distanceTransform((~seeds).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _clicked_parts(mask: Mask, seeds: Seeds) -> Mask:
    parts = cv2.connectedComponents(mask.astype(np.uint8))[1]
    return np.asarray(mask & np.isin(parts, parts[seeds == OBJECT]))
