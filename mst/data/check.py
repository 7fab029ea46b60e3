"""Faults of a data set that only its images tell, or what annotation files say beside the masks.

What the readers leave out is told by them (`mst.data.annotations.Records`).
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.files import Fetch, fetch
from mst.data.join import EMPTY, MIN_AREA, SMALL
from mst.data.pixels.images import read_header
from mst.data.problems import Problem
from mst.data.readers.pairs import BROKEN_IMAGE
from mst.data.readers.segmentations import MALFORMED, OTHER_SIZE, shown
from mst.errors import AnnotationError, ImageError, SizeError

IMAGE_SIZE = "image of another size than annotated"
AS_STORED = "annotation of the pixels as stored, not upright"
PERHAPS_AS_STORED = "annotation perhaps of the pixels as stored, not upright"
NO_OBJECTS = "image without objects"
IMAGE_TWICE = "image twice"
OTHER_AREA = "area in the file that is not the mask's"
OTHER_BOX = "box in the file that is not the mask's"

_SAME_SIZE = (2, 3, 4)  # EXIF orientations that keep an image's size
_AREA_SLACK = (30.0, 0.25)  # pixels, and share of the larger area, by which polygons and pixels differ
_BOX_SLACK = (8.0, 0.25)  # pixels, and share of the longer side


class Checked(NamedTuple):
    """An image, without what is wrong with it."""

    record: ImageRecord | None
    """None where the image itself cannot be used."""
    problems: tuple[Problem, ...]
    is_turned: bool = False
    """Whether EXIF turns the image and keeps its size, so that no annotation shows of which pixels it is."""


def check_record(record: ImageRecord, fetch: Fetch = fetch) -> Checked:
    """Read an image and all masks of its objects.

    An image without objects is left out as well: nothing can be learned from it.

    Raises:
        DataError: the image's store cannot be reached.
    """
    where, lost = str(record.path), len(record.objects)
    try:
        header = read_header(record.path, fetch)
        record.read(fetch)
    except ImageError as error:
        return Checked(None, (Problem(BROKEN_IMAGE, where, str(error), lost),))
    except SizeError as error:
        is_as_stored = header.orientation != 1 and header.stored == (record.height, record.width)
        kind = AS_STORED if is_as_stored else IMAGE_SIZE
        return Checked(None, (Problem(kind, where, str(error), lost),))
    problems, kept = [], []
    for each in record.objects:
        found = list(_problems_of(each))
        problems += found
        if not any(problem.lost and problem.is_fault for problem in found):
            kept.append(each)
    if not kept:
        what = "none is annotated" if not lost else f"none of {lost} is sound"
        return Checked(None, (*problems, Problem(NO_OBJECTS, where, what, lost=0, is_fault=False)))
    return Checked(record.with_objects(kept), tuple(problems), header.orientation in _SAME_SIZE)


def doubt(checked: Sequence[Checked]) -> list[Checked]:
    """Leave out images of which others make doubtful whether they are annotated upright.

    Where an annotation is of pixels as they are stored (its size tells), its tool does not know EXIF, and
    photos that EXIF turns without a change of size are annotated likewise.
    """
    if not any(problem.kind == AS_STORED for each in checked for problem in each.problems):
        return list(checked)
    return [_doubted(each) for each in checked]


def _doubted(checked: Checked) -> Checked:
    if checked.record is None or not checked.is_turned:
        return checked
    what = "other annotations of this source do not follow EXIF, and this image's size does not tell"
    problem = Problem(PERHAPS_AS_STORED, str(checked.record.path), what, len(checked.record.objects))
    return Checked(None, (*checked.problems, problem), is_turned=True)


def check_names(records: Sequence[ImageRecord]) -> list[Problem]:
    """Find images that stand twice in a data set, as they would be seen twice as often."""
    paths = Counter(str(record.path) for record in records)
    return [
        Problem(IMAGE_TWICE, path, f"{count} entries; their objects are taken together", lost=0)
        for path, count in paths.items()
        if count > 1
    ]


def _problems_of(annotation: ObjectAnnotation) -> Iterator[Problem]:
    try:
        area = annotation.runs().area
    except SizeError as error:
        yield Problem(OTHER_SIZE, annotation.name, str(error))
        return
    except AnnotationError as error:
        yield Problem(MALFORMED, annotation.name, str(error))
        return
    if not area:
        yield Problem(EMPTY, annotation.name, "no pixel of the image is the object's")
        return
    if area < MIN_AREA:
        yield Problem(SMALL, annotation.name, f"{area} px", is_fault=False)
    declared = annotation.declared
    if declared and declared.area is not None and not _is_near(declared.area, area, area, _AREA_SLACK):
        what = f"area is {shown(declared.area)}, the mask has {area} px, which counts"
        yield Problem(OTHER_AREA, annotation.name, what, lost=0)
    if declared and declared.box is not None and not _is_box(declared.box, annotation):
        top, left, bottom, right = annotation.box
        box = [left, top, right - left, bottom - top]
        what = f"bbox is {shown(declared.box)}, the mask's is {box}, which counts"
        yield Problem(OTHER_BOX, annotation.name, what, lost=0)


def _is_box(declared: Any, annotation: ObjectAnnotation) -> bool:
    """Whether COCO's [left, top, width, height] is the mask's box, as exactly as tools write it."""
    if not isinstance(declared, list) or len(declared) != 4 or not all(map(_is_number, declared)):
        return False
    top, left, bottom, right = annotation.box
    side = max(right - left, bottom - top)
    corners = (declared[0], declared[1], declared[0] + declared[2], declared[1] + declared[3])
    return all(
        _is_near(found, true, side, _BOX_SLACK)
        for found, true in zip(corners, (left, top, right, bottom), strict=True)
    )


def _is_near(found: Any, true: float, whole: float, slack: tuple[float, float]) -> bool:
    return _is_number(found) and abs(found - true) <= max(slack[0], slack[1] * whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
