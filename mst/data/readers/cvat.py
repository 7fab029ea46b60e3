"""Reader of CVAT's own export ("CVAT for images 1.1"): polygons and masks."""

from collections import defaultdict
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
from upath import UPath

from mst.data.annotations import Records
from mst.data.files import fetch
from mst.data.problems import Problem
from mst.data.readers.shapes import ImageFolder, Shape, malformed, no_mask, outlined, painted_at, record_of
from mst.errors import DataError

NO_SIZE = "image entry without a size"

_DRAWN = ("polygon", "mask", "box", "polyline", "points", "ellipse", "cuboid", "skeleton")


def read_cvat(annotations: UPath, images: UPath | None = None) -> Records:
    """Read `annotations.xml` with the images in a folder.

    Polygons of one label and one group are one object. Boxes, ellipses, lines and points are left out.

    Args:
        annotations: the XML file.
        images: folder of the images, by default `images` beside the file, as CVAT exports them.

    Returns:
        A record for each image, in the file's order; and what was left out.

    Raises:
        DataError: the file is missing or none of CVAT's.
    """
    try:
        root = ElementTree.fromstring(fetch(annotations))
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{annotations}: no XML file ({error})") from None
    entries = root.findall("image")
    if root.tag != "annotations" or not entries:
        raise DataError(
            f"{annotations}: expected CVAT's format 'CVAT for images 1.1', with an <image> for each image"
        )
    photos, records, problems = ImageFolder(images or annotations.parent / "images"), [], list[Problem]()
    for entry in entries:
        drawn = [each for each in entry if each.tag in _DRAWN]
        name = entry.get("name", "")
        try:
            size = int(entry.attrib["height"]), int(entry.attrib["width"])
        except (KeyError, ValueError):
            problems.append(Problem(NO_SIZE, f"{annotations.name}: {name}", lost=len(drawn)))
            continue
        seen = photos.look(name, size, len(drawn), problems)
        if seen is not None:
            shapes = _shapes(drawn, *size, f"{annotations.name}:{name}")
            records.append(record_of(seen[0], size, shapes, problems))
    return Records(records, tuple(problems))


def _shapes(drawn: list[Element], height: int, width: int, image: str) -> Iterator[Shape]:
    groups: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for number, shape in enumerate(drawn):
        name = f"{image}:{number}"
        try:
            if shape.tag == "mask":
                yield _mask(shape, height, width, name)
            elif shape.tag != "polygon":
                yield no_mask(shape.tag, name)
            else:
                group = shape.get("group_id", "0")
                key = f"#{number}" if group == "0" else f"{shape.get('label')} {group}"
                points = [float(each) for each in shape.attrib["points"].replace(";", ",").split(",")]
                groups[key].append((name, points))
        except (KeyError, ValueError) as error:
            yield malformed(f"it cannot be read ({error})", name)
    for members in groups.values():
        yield outlined([points for _, points in members], height, width, members[0][0])


def _mask(shape: Element, height: int, width: int, name: str) -> Shape:
    """Runs of a box, row by row, the first of which is background."""
    left, top, cols, rows = (int(float(shape.attrib[each])) for each in ("left", "top", "width", "height"))
    counts = [int(each) for each in shape.attrib["rle"].split(",")]
    if min(counts) < 0 or rows <= 0 or cols <= 0 or sum(counts) != rows * cols:
        return malformed(f"its runs have {sum(counts)} pixels, its box {cols} x {rows}", name)
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rows, cols)
    return painted_at(inside, top, left, (height, width), name)
