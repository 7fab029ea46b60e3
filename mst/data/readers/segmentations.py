"""What COCO's form of a mask may hold, checked before any of it reaches pycocotools.

Its C code reads numbers that are none, or wrong, as they come: it takes all memory, or ends the process.
"""

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mst.data.pixels.runs import Runs

NO_MASK = "annotation without a mask"
MALFORMED = "malformed mask"
OTHER_SIZE = "mask of another size than its image"

_BEYOND = 1.0  # a polygon's points lie within so many image sides beyond the image
_LONGEST_OUTLINE = 1_000_000  # pixels of a polygon's outline; each takes some 80 bytes while it is filled
_LEAST_NUMBERS = 6  # three points; pycocotools takes four numbers for a box


def shown(value: Any) -> str:
    """A wrong value, as far as a message holds it."""
    return reprlib.repr(value)


def fault_of(segmentation: Any, height: int, width: int) -> tuple[str, str] | None:
    """Return what is wrong with a segmentation of an image of `height` x `width` pixels, if anything.

    Returns:
        The kind of fault, and which part of the segmentation has what; None for one that can be decoded.
    """
    if segmentation is None or (isinstance(segmentation, list | dict) and not segmentation):
        return NO_MASK, "segmentation is empty; a box alone says nothing of the object's shape"
    if isinstance(segmentation, Mapping):
        return _fault_of_runs(segmentation, height, width)
    if not isinstance(segmentation, list):
        return MALFORMED, f"segmentation is {shown(segmentation)}, neither polygons nor run lengths"
    for number, polygon in enumerate(segmentation):
        wrong = _fault_of_polygon(polygon, height, width)
        if wrong:
            return MALFORMED, f"segmentation[{number}] {wrong}"
    return None


def _fault_of_polygon(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, list) or len(polygon) < _LEAST_NUMBERS or len(polygon) % 2:
        what = f"has {len(polygon)} numbers" if isinstance(polygon, list) else f"is {shown(polygon)}"
        return f"{what}; a polygon is [x1, y1, x2, y2, x3, y3, ...]"
    wrong = [each for each in polygon if type(each) is not float and type(each) is not int]
    if wrong:
        return f"has {shown(wrong[0])}, which is no number"
    try:
        numbers = np.array(polygon, np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        return "has a number of more digits than any coordinate"
    return _fault_of_points(numbers, height, width)


def _fault_of_points(numbers: NDArray[np.float64], height: int, width: int) -> str | None:
    for axis, side in ((numbers[0::2], width), (numbers[1::2], height)):
        least, most = axis.min(), axis.max()
        if not (-_BEYOND * side <= least and most <= (1 + _BEYOND) * side):  # NaN fails as well
            return (
                f"has the coordinate {most if most > side else least:g}; points lie within one image side "
                f"beyond the image, which is {width} x {height} pixels"
            )
    points = numbers.reshape(-1, 2)
    if len(points) * (1 + 2 * _BEYOND) * max(height, width) <= _LONGEST_OUTLINE:
        return None  # no need to measure it
    length = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length <= _LONGEST_OUTLINE:
        return None
    return f"has an outline of {length:.0f} pixels; at most {_LONGEST_OUTLINE} are accepted"


def _fault_of_runs(runs: Mapping[str, Any], height: int, width: int) -> tuple[str, str] | None:
    size, counts = runs.get("size"), runs.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int for side in size):
        return MALFORMED, f"segmentation.size is {shown(size)}, not [height, width]"
    if tuple(size) != (height, width):
        return OTHER_SIZE, f"the mask has size {tuple(size)}, its image {(height, width)}"
    wrong = _fault_of_counts(counts, height, width)
    return (MALFORMED, f"segmentation.counts {wrong}") if wrong else None


def _fault_of_counts(counts: Any, height: int, width: int) -> str | None:
    if isinstance(counts, str | bytes):
        try:
            Runs.parse(counts, height, width)
        except ValueError as error:
            return f"cannot be read: {error}"
        return None
    if not isinstance(counts, list):
        return f"is {shown(counts)}, neither numbers nor text"
    wrong = [each for each in counts if type(each) is not int or each < 0]
    if wrong:
        return f"has {shown(wrong[0])}, which is no count of pixels"
    total = sum(counts)
    return None if total == height * width else f"add up to {total}, not to {height} x {width}"
