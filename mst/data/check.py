"""Faults of a data set: what would stop a training, or be learned as if it were right."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.files import Fetch, fetch
from mst.errors import DataError, ImageError, SizeError

_BOX_SLACK = 1.0  # pixels by which annotators' boxes exceed their images, for rounding


class Problem(NamedTuple):
    """One fault."""

    kind: str
    """What is wrong, in a few words that are the same for all faults of the kind."""
    where: str
    """The image, or the annotation."""


class Checked(NamedTuple):
    """An image, without what is wrong with it."""

    record: ImageRecord | None
    """None where the image itself cannot be used."""
    problems: tuple[Problem, ...]


def check_record(record: ImageRecord, fetch: Fetch = fetch) -> Checked:
    """Read an image and all masks of its objects.

    An image without objects is a fault too: nothing can be learned from it. Of objects of the same name the
    first is kept.

    Raises:
        DataError: the image's store cannot be reached.
    """
    try:
        record.read(fetch)
    except ImageError:
        return Checked(None, (Problem("image missing or unreadable", str(record.path)),))
    except SizeError:
        return Checked(None, (Problem("image of another size than annotated", str(record.path)),))
    names = Counter(each.name for each in record.objects)
    problems = [Problem("annotation twice", name) for name, count in names.items() if count > 1]
    kept = []
    for each in {each.name: each for each in reversed(record.objects)}.values():
        fault = _fault(each)
        if fault:
            problems.append(Problem(fault, each.name))
        else:
            kept.append(each)
    if not kept:
        problems.append(Problem("image without objects", str(record.path)))
        return Checked(None, tuple(problems))
    return Checked(record.with_objects(kept[::-1]), tuple(problems))


def check_names(records: Sequence[ImageRecord]) -> list[Problem]:
    """Find images that stand twice in a data set, as they would be seen twice as often."""
    paths = Counter(str(record.path) for record in records)
    return [Problem("image twice", path) for path, count in paths.items() if count > 1]


def _fault(annotation: ObjectAnnotation) -> str | None:
    try:
        area = annotation.runs().area
    except SizeError:
        return "mask of another size than its image"
    except DataError:
        return "malformed mask"
    if not area:
        return "empty mask"
    top, left, bottom, right = annotation.box
    beyond = max(-top, -left, bottom - annotation.height, right - annotation.width)
    if beyond > _BOX_SLACK or bottom <= top or right <= left:
        return "box outside the image, or empty"
    return None
