"""Readers of COCO and LVIS annotation files (`instances_*.json`, `lvis_*.json`)."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, resolve_inside
from mst.data.files import fetch, names
from mst.errors import DataError


def read_coco(annotations: UPath, images: UPath | None = None) -> list[ImageRecord]:
    """Read a COCO instances file; crowds are left out.

    Args:
        annotations: the JSON file, `.../annotations/instances_SPLIT.json` in COCO's own layout.
        images: the folder of the images; by default `.../SPLIT`, as COCO is laid out.

    Returns:
        A record for each image, in the file's order; images without objects included.

    Raises:
        DataError: the file is missing or malformed, or names an image outside `images`.
    """
    split = annotations.stem.rpartition("_")[2]
    folder = images or annotations.parent.parent / split
    return _read(annotations, folder, lambda image: str(image["file_name"]))


def read_lvis(annotations: UPath, images: UPath | None = None) -> list[ImageRecord]:
    """Read an LVIS file, v0.5 or v1, whose images are COCO's.

    An LVIS split draws images from several COCO splits, so the last two parts of an image's `coco_url`
    (`train2017/000000000009.jpg`) say where it lies.

    Args:
        annotations: the JSON file, `.../annotations/lvis_*.json`.
        images: the folder of COCO's splits; by default the parent of the folder of `annotations`.

    Returns:
        A record for each image, in the file's order.

    Raises:
        DataError: as `read_coco`.
    """
    folder = images or annotations.parent.parent
    return _read(annotations, folder, lambda image: "/".join(str(image["coco_url"]).rsplit("/", 2)[-2:]))


def _read(annotations: UPath, folder: UPath, file_of: Callable[[dict[str, Any]], str]) -> list[ImageRecord]:
    tables = load_tables(annotations)
    objects = _objects_by_image(tables, annotations)
    try:
        records = [
            ImageRecord(
                path=resolve_inside(folder, file_of(image), f"{annotations}: image {image['id']}"),
                height=int(image["height"]),
                width=int(image["width"]),
                objects=tuple(objects.get(image["id"], ())),
            )
            for image in tables["images"]
        ]
    except (KeyError, TypeError) as error:
        raise DataError(f"{annotations}: an image lacks the field {error}") from None
    return records


def check_images(paths: Sequence[UPath], source: UPath) -> None:
    """Refuse a source whose images are missing; folders are listed, since asking a store for each is slow.

    Raises:
        DataError: the message counts what is missing and names the first.
    """
    there = {folder: names(folder) for folder in {path.parent for path in paths}}
    missing = [path for path in paths if path.name not in there[path.parent]]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}"
        )


def load_tables(annotations: UPath) -> dict[str, Any]:
    """Read the JSON of a COCO file, of which it is only sure that there are images and annotations.

    Raises:
        DataError: the file is missing, no JSON, or lacks either.
    """
    try:
        tables = json.loads(fetch(annotations))
    except OSError as error:
        raise DataError(f"{annotations}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(f"{annotations}: not a JSON file ({error})") from None
    if not isinstance(tables, dict) or not {"images", "annotations"} <= tables.keys():
        raise DataError(f"{annotations}: not a COCO file, which has 'images' and 'annotations'")
    return tables


def _objects_by_image(tables: dict[str, Any], annotations: UPath) -> dict[int, list[ObjectAnnotation]]:
    objects = defaultdict(list)
    number = None
    try:
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in tables["images"]}
        for entry in tables["annotations"]:
            number = entry["id"]
            if entry.get("iscrowd"):
                continue
            left, top, box_width, box_height = entry["bbox"]
            height, width = sizes[entry["image_id"]]
            objects[entry["image_id"]].append(
                ObjectAnnotation(
                    segmentation=entry["segmentation"],
                    height=height,
                    width=width,
                    area=float(entry["area"]),
                    box=(top, left, top + box_height, left + box_width),
                    name=f"{annotations.name}:{number}",
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{annotations}: malformed near annotation {number} ({error!r})") from None
    return objects
