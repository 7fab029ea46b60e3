"""Reader of what annotators accepted on a server's page or over its interface (`annotation_store`).

FOLDER/images/IMAGE.jpg               the image, named by its sha256
FOLDER/annotations/IMAGE/MASK.json    {"label", "mask": {"size", "counts"}, "clicks", "score", ...}
"""

import json
from collections.abc import Iterator
from typing import Any

from upath import UPath

from mst.data.annotations import ObjectAnnotation, Records
from mst.data.files import fetch, names
from mst.data.pixels.images import read_header
from mst.data.problems import Problem
from mst.data.readers.folders import list_files
from mst.data.readers.segmentations import MALFORMED, fault_of
from mst.data.readers.shapes import Shape, record_of
from mst.errors import DataError, ImageError

IMAGES, ANNOTATIONS = "images", "annotations"

NO_IMAGE = "annotation whose image is missing or unreadable"


def read_accepted(root: UPath, images: UPath | None = None) -> Records:
    """Read a folder of accepted masks.

    Args:
        root: the folder.
        images: of the images, where it is not `root/images`.

    Returns:
        A record for each annotated image, by name; and what was left out.

    Raises:
        DataError: there is no annotation.
    """
    there = list_files(images or root / IMAGES).files
    annotated = sorted(names(root / ANNOTATIONS))
    if not annotated:
        raise DataError(f"{root}: no accepted masks: expected annotations/IMAGE/MASK.json")
    records, problems = [], list[Problem]()
    for name in annotated:
        folder = root / ANNOTATIONS / name
        files = sorted(each for each in names(folder) if each.endswith(".json"))
        try:
            header = read_header(there[name])
        except (KeyError, ImageError) as error:
            problems.append(Problem(NO_IMAGE, str(folder), str(error), lost=len(files)))
            continue
        size = header.height, header.width
        records.append(
            record_of(there[name], size, (_object(folder / each, *size) for each in files), problems)
        )
    return Records(records, tuple(problems))


def documents(root: UPath) -> Iterator[dict[str, Any]]:
    """Yield all annotations of a folder, by image and name; one that cannot be read is passed over."""
    for name in sorted(names(root / ANNOTATIONS)):
        yield from documents_of(root, name)


def documents_of(root: UPath, image: str) -> Iterator[dict[str, Any]]:
    """Yield the annotations of one image, by name; one that cannot be read is passed over."""
    folder = root / ANNOTATIONS / image
    for file in sorted(each for each in names(folder) if each.endswith(".json")):
        try:
            document: dict[str, Any] = json.loads(fetch(folder / file))
        except (OSError, ValueError):
            continue
        yield document


def _object(file: UPath, height: int, width: int) -> Shape:
    name = f"{file.parent.name[:12]}/{file.name}"
    try:
        mask = json.loads(fetch(file))["mask"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Problem(MALFORMED, name, f"it cannot be read ({error!r})")
    if fault := fault_of(mask, height, width):
        return Problem(fault[0], name, fault[1])
    return ObjectAnnotation(mask, height, width, name)
