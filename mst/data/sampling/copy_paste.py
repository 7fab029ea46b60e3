"""Copy-paste: an object of another image in a training sample's view (Ghiasi et al., CVPR 2021).

It shows objects in front of what they were never photographed with, and objects that are hidden in part.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mst.clicks import Mask
from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.pixels.images import RGB, resize
from mst.data.pixels.runs import paint

_LENGTHS = (0.15, 0.8)  # of a copy's longer side, as shares of the view's side
_MOST_ENLARGED = 2.0  # beyond that a copy is told by its blur
_SMALLEST = 32  # pixels of an object's longer side, which gives a copy of twice that
_LEAST_LEFT = 0.5  # share of an object that a copy must leave to be seen
_MARGIN = 2  # pixels around an object, for the feather


@dataclass(frozen=True)
class Copy:
    """An object as it lies in a view of S x S pixels; parts of it may lie outside."""

    image: RGB
    """(H, W, 3), the object and a margin."""
    mask: Mask
    """(H, W)."""
    top: int
    left: int

    def covers(self, size: int) -> Mask:
        """Return which pixels of the view it covers, (size, size)."""
        covered = np.zeros((size, size), bool)
        inside, seen = self._places(size)
        covered[inside] = self.mask[seen]
        return covered

    def onto(self, view: RGB) -> RGB:
        """Return the view (S, S, 3) with the object in it; its border is blended, a pixel on each side."""
        inside, seen = self._places(len(view))
        weight = np.asarray(cv2.blur(self.mask.astype(np.float32), (3, 3)))[seen]
        out = view.copy()
        out[inside] = cv2.blendLinear(self.image[seen], view[inside], weight, 1 - weight)
        return out

    def _places(self, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What of the view it takes, and which part of it is seen there."""
        spans = []
        for start, length in zip((self.top, self.left), self.mask.shape, strict=True):
            first, last = max(start, 0), min(start + length, size)
            spans.append((slice(first, last), slice(first - start, last - start)))
        (rows, seen_rows), (cols, seen_cols) = spans
        return (rows, cols), (seen_rows, seen_cols)


def choose_object(record: ImageRecord, rng: np.random.Generator) -> ObjectAnnotation | None:
    """Draw an object that is worth a copy: no stuff, and not too small; None where the image has none."""
    objects = [each for each in record.objects if not each.is_stuff and max(_sides(each)) >= _SMALLEST]
    return objects[int(rng.integers(len(objects)))] if objects else None


def cut_out(
    image: RGB, annotation: ObjectAnnotation, size: int, flip: float, rng: np.random.Generator
) -> Copy:
    """Cut an object out of its image, and draw its size and place in a view.

    Args:
        image: (H, W, 3).
        annotation: of the object in it.
        size: side of the view in pixels; the centre of the copy lies in the view.
        flip: probability that the copy is mirrored.
        rng: the sample's own generator.

    Raises:
        DataError: the annotation's mask is malformed.
    """
    top, left, bottom, right = annotation.box
    rows = slice(max(0, math.floor(top) - _MARGIN), math.ceil(bottom) + _MARGIN)
    first, last = max(0, math.floor(left) - _MARGIN), min(annotation.width, math.ceil(right) + _MARGIN)
    mask = paint([annotation.runs()], annotation.height, first, last)[rows]
    length = size * math.exp(rng.uniform(*np.log(_LENGTHS)))
    factor = min(_MOST_ENLARGED, length / max(_sides(annotation)))
    height, width = (max(1, round(side * factor)) for side in mask.shape)
    mirrored = bool(rng.random() < flip)
    centre = rng.uniform(0, size, 2)
    return Copy(
        image=_resized(image[rows, first:last], height, width, mirrored),
        mask=_resized(np.where(mask, np.uint8(255), np.uint8(0)), height, width, mirrored) > 127,
        top=int(centre[0] - height / 2),
        left=int(centre[1] - width / 2),
    )


def leaves_enough(target: Mask, copy: Mask, min_area: float) -> bool:
    """Whether a copy leaves half of an object to be seen, and `min_area` of the view."""
    left = (target & ~copy).mean()
    return bool(left >= max(min_area, _LEAST_LEFT * target.mean()))


def _sides(annotation: ObjectAnnotation) -> tuple[float, float]:
    top, left, bottom, right = annotation.box
    return bottom - top, right - left


def _resized(pixels: RGB, height: int, width: int, mirrored: bool) -> RGB:
    resized = np.asarray(resize(pixels, height, width), np.uint8)
    return np.asarray(cv2.flip(resized, 1), np.uint8) if mirrored else resized
