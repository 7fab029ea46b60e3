"""Reader of COCO's panoptic annotation: its stuff segments, which the instances files do not have."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, Records, resolve_inside
from mst.data.pixels.encode import annotate
from mst.data.pixels.images import read_image
from mst.data.problems import Problem
from mst.data.readers.coco import (
    ANNOTATION_TWICE,
    BAD_ANNOTATION,
    BAD_IMAGE,
    NO_IMAGE,
    SHARED_ID,
    load_tables,
)
from mst.data.readers.pairs import UNREADABLE
from mst.errors import DataError, ImageError


def read_panoptic(annotations: UPath, images: UPath | None = None) -> Records:
    """Read the stuff of `.../annotations/panoptic_SPLIT.json`; its PNGs lie in the folder of its name.

    Args:
        annotations: the JSON file.
        images: the folder of the images; by default `.../SPLIT`, as COCO is laid out.

    Returns:
        A record for each annotated image, with nothing but stuff; and what was left out.

    Raises:
        DataError: the file is malformed, or names a file outside its folders.
    """
    tables = load_tables(annotations)
    folder = images or annotations.parent.parent / annotations.stem.rpartition("_")[2]
    files, problems = _files(tables["images"], annotations.name)
    records = []
    try:
        stuff = {each["id"] for each in tables["categories"] if not each["isthing"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{annotations}: malformed categories, they lack {error}") from None
    seen: set[Any] = set()
    for place, entry in enumerate(tables["annotations"]):
        where = f"{annotations.name}: annotation #{place}"
        problem = _fault_of(entry, files, seen)
        if problem:
            problems.append(problem._replace(where=where))
            continue
        seen.add(entry["image_id"])
        path = resolve_inside(folder, files[entry["image_id"]], where)
        png = resolve_inside(annotations.with_suffix(""), str(entry["file_name"]), where)
        try:
            shape, objects = _segments(png, entry, stuff)
        except ImageError as error:
            problems.append(Problem(UNREADABLE, where, str(error), lost=len(entry["segments_info"])))
        else:
            records.append(ImageRecord(path, *shape, objects))
    if problems and not records:
        raise DataError(f"{annotations}: none of its images can be read; {problems[0]}")
    return Records(records, tuple(problems))


def _files(images: list[Any], name: str) -> tuple[dict[Any, str], list[Problem]]:
    """The file of each image by id, without ids that name several."""
    files: dict[Any, set[str]] = defaultdict(set)
    problems = []
    for place, image in enumerate(images):
        if isinstance(image, dict) and isinstance(image.get("id"), int | str) and image.get("file_name"):
            files[image["id"]].add(str(image["file_name"]))
        else:
            what = "it needs an id and a file_name"
            problems.append(Problem(BAD_IMAGE, f"{name}: image #{place}", what, lost=0))
    for image_id, found in files.items():
        if len(found) > 1:
            what = f"the id is given to {', '.join(sorted(found)[:3])}; give each image one of its own"
            problems.append(Problem(SHARED_ID, f"{name}: image {image_id}", what, lost=0))
    return {image_id: found.pop() for image_id, found in files.items() if len(found) == 1}, problems


def _fault_of(entry: Any, files: Mapping[Any, str], seen: Collection[Any]) -> Problem | None:
    """What is wrong with an annotation, which has all segments of an image; `where` is left to the caller."""
    if not isinstance(entry, dict) or not isinstance(entry.get("segments_info"), list):
        return Problem(BAD_ANNOTATION, "", "it needs an image_id, a file_name and segments_info")
    segments = entry["segments_info"]
    has_fields = all(isinstance(each, dict) and {"id", "category_id"} <= each.keys() for each in segments)
    if not (isinstance(entry.get("image_id"), int | str) and entry.get("file_name") and has_fields):
        return Problem(
            BAD_ANNOTATION, "", "it needs an image_id, a file_name, and segments with id and category_id"
        )
    if entry["image_id"] not in files:
        return Problem(NO_IMAGE, "", f"no image alone has the id {entry['image_id']!r}", lost=len(segments))
    if entry["image_id"] in seen:
        return Problem(
            ANNOTATION_TWICE, "", f"image {entry['image_id']!r} has one already", lost=len(segments)
        )
    return None


def _segments(
    png: UPath, entry: dict[str, Any], stuff: Collection[int]
) -> tuple[tuple[int, int], tuple[ObjectAnnotation, ...]]:
    """The size of an image and its stuff."""
    colours = read_image(png).astype(np.int64)
    numbers = colours @ np.array([1, 256, 256**2])
    wanted = [each["id"] for each in entry["segments_info"] if each["category_id"] in stuff]
    objects = (
        replace(annotate(numbers == number, f"{entry['file_name']}:{number}"), is_stuff=True)
        for number in wanted
        if (numbers == number).any()
    )
    return (colours.shape[0], colours.shape[1]), tuple(objects)
