"""Reader of labelme's files, which X-AnyLabeling writes too: a JSON file beside each image."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from upath import UPath

from mst.data.annotations import Records
from mst.data.files import fetch
from mst.data.index import relative_to
from mst.data.pixels.base64_text import from_base64
from mst.data.pixels.mask_images import decode_mask
from mst.data.problems import Problem
from mst.data.readers.folders import list_files
from mst.data.readers.segmentations import shown
from mst.data.readers.shapes import ImageFolder, Shape, malformed, no_mask, outlined, painted_at, record_of
from mst.errors import DataError

NO_LABELME = "file that is none of labelme's"

_OUTLINES = ("polygon", "rotation", None)  # X-AnyLabeling's turned boxes follow what they hold
_MASK = "mask"


def read_labelme(folder: UPath, images: UPath | None = None) -> Records:
    """Read `NAME.json` of each image: its polygons and masks.

    Shapes of one label and one `group_id` are one object. Boxes, circles, lines and points are left out.

    Args:
        folder: of the JSON files, and of those in folders inside.
        images: folder of the images, where they do not lie beside the files.

    Returns:
        A record for each image, in the order of the files; and what was left out.

    Raises:
        DataError: there is no such file.
    """
    files = list_files(folder, {".json"}).files
    if not files:
        raise DataError(f"{folder}: expected labelme's files, NAME.json beside NAME.jpg; there is none")
    photos, records, problems = ImageFolder(images or folder), [], list[Problem]()
    for path in files.values():
        try:
            content = json.loads(fetch(path))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(Problem(NO_LABELME, str(path), str(error), lost=0))
            continue
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            problems.append(Problem(NO_LABELME, str(path), "it has no list of shapes", lost=0))
            continue
        size = content.get("imageHeight"), content.get("imageWidth")
        name = content.get("imagePath")
        seen = photos.look(name, None if None in size else size, len(content["shapes"]), problems)
        if seen is not None:
            image, *found = seen
            shapes = _shapes(content["shapes"], found[0], found[1], relative_to(path, folder))
            records.append(record_of(image, (found[0], found[1]), shapes, problems))
    return Records(records, tuple(problems))


def _shapes(drawn: list[Any], height: int, width: int, file: str) -> Iterator[Shape]:
    groups: dict[Any, list[list[Any]]] = defaultdict(list)
    for number, shape in enumerate(drawn):
        name = f"{file}:{number}"
        if not isinstance(shape, dict):
            yield malformed(f"it is {shown(shape)}, not an object", name)
        elif shape.get("shape_type") == _MASK:
            yield _painted(shape, height, width, name)
        elif shape.get("shape_type") not in _OUTLINES:
            yield no_mask(shape.get("shape_type"), name)
        else:
            group = shape.get("group_id")
            alone = group is None
            groups[number if alone else f"{shape.get('label')} {group}"].append([name, shape.get("points")])
    for members in groups.values():
        flat = [_flat(points) for _, points in members]
        yield outlined(flat, height, width, members[0][0])


def _flat(points: Any) -> list[Any]:
    """x1, y1, x2, y2, ... of pairs; whatever else is there is refused later."""
    if not isinstance(points, list) or not all(isinstance(each, list) for each in points):
        return [points]
    return [value for point in points for value in point]


def _painted(shape: Mapping[str, Any], height: int, width: int, name: str) -> Shape:
    """A mask of a box, whose first point is the box's top left."""
    try:
        (left, top), *_ = shape["points"]
        row, col = round(top), round(left)
        inside = decode_mask(from_base64(shape["mask"]), name)
    except (DataError, ValueError, KeyError, TypeError) as error:
        return malformed(f"its mask cannot be read ({error})", name)
    return painted_at(inside, row, col, (height, width), name)
