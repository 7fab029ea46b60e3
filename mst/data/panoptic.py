"""Reader of COCO's panoptic annotation: its stuff segments, which the instances files do not have."""

from dataclasses import replace
from typing import Any

import numpy as np
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, resolve_inside
from mst.data.coco import load_tables
from mst.data.encode import annotate
from mst.data.images import read_image
from mst.errors import DataError


def read_panoptic(annotations: UPath, images: UPath | None = None) -> list[ImageRecord]:
    """Read the stuff of `.../annotations/panoptic_SPLIT.json`; its PNGs lie in the folder of its name.

    Args:
        annotations: the JSON file.
        images: the folder of the images; by default `.../SPLIT`, as COCO is laid out.

    Returns:
        A record for each annotated image, with nothing but stuff.

    Raises:
        DataError: the file is malformed, or a PNG is missing.
    """
    tables = load_tables(annotations)
    folder = images or annotations.parent.parent / annotations.stem.rpartition("_")[2]
    try:
        stuff = {each["id"] for each in tables["categories"] if not each["isthing"]}
        files = {image["id"]: str(image["file_name"]) for image in tables["images"]}
        records = []
        for entry in tables["annotations"]:
            where = f"{annotations}: image {entry['image_id']}"
            segments = _segments(annotations.with_suffix(""), entry, stuff, where)
            path = resolve_inside(folder, files[entry["image_id"]], where)
            records.append(ImageRecord(path, *segments[0], tuple(segments[1])))
    except (KeyError, TypeError) as error:
        raise DataError(f"{annotations}: malformed, it lacks {error}") from None
    return records


def _segments(
    folder: UPath, entry: dict[str, Any], stuff: set[int], where: str
) -> tuple[tuple[int, int], list[ObjectAnnotation]]:
    """The size of an image and its stuff."""
    colours = read_image(resolve_inside(folder, str(entry["file_name"]), where)).astype(np.int64)
    numbers = colours @ np.array([1, 256, 256**2])
    wanted = [each["id"] for each in entry["segments_info"] if each["category_id"] in stuff]
    objects = [
        replace(annotate(numbers == number, f"{entry['file_name']}:{number}"), is_stuff=True)
        for number in wanted
        if (numbers == number).any()
    ]
    return (colours.shape[0], colours.shape[1]), objects
