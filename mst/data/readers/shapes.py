"""What annotation tools draw, as objects: outlines and painted pixels; a box or a line is no mask."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from upath import UPath

from mst.clicks import Mask
from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.index import relative_to
from mst.data.join import EMPTY
from mst.data.pixels.encode import annotate
from mst.data.pixels.images import read_header
from mst.data.problems import Problem
from mst.data.readers.folders import list_files
from mst.data.readers.segmentations import MALFORMED, NO_MASK, fault_of, shown
from mst.errors import ImageError

NO_FILE = "image that is not there"
BROKEN = "image missing or unreadable"
OTHER_IMAGE_SIZE = "image of another size than its annotation says"

_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)", re.DOTALL)  # what Label Studio puts before the names of uploads

Shape = ObjectAnnotation | Problem
"""An object, or what is wrong with it."""


def outlined(polygons: Sequence[Sequence[Any]], height: int, width: int, name: str) -> Shape:
    """Return the object inside some outlines.

    Args:
        polygons: each x1, y1, x2, y2, ... in pixels.
        height: of the image.
        width: likewise.
        name: where it stands.
    """
    segmentation = [list(each) for each in polygons]
    if fault := fault_of(segmentation, height, width):
        return Problem(fault[0], name, fault[1])
    return ObjectAnnotation(segmentation, height, width, name)


def painted(mask: Mask, name: str) -> Shape:
    """Return the object of a mask (H, W)."""
    return annotate(mask, name) if mask.any() else Problem(EMPTY, name, "the mask is empty", lost=0)


def painted_at(inside: Mask, top: int, left: int, size: tuple[int, int], name: str) -> Shape:
    """Return the object of a mask of a box, whose top left pixel is given, in an image of `size`."""
    (rows, cols), (height, width) = inside.shape, size
    if not (0 <= top <= height - rows and 0 <= left <= width - cols):
        return malformed(f"its mask of {cols} x {rows} pixels at {left}, {top} leaves the image", name)
    mask = np.zeros(size, np.bool_)
    mask[top : top + rows, left : left + cols] = inside
    return painted(mask, name)


def no_mask(kind: Any, name: str) -> Problem:
    """Return what is said of a shape that is no mask, such as a box."""
    return Problem(NO_MASK, name, f"it is a {shown(kind)}, which does not say where the object is")


def malformed(what: str, name: str) -> Problem:
    """Return what is said of a shape that cannot be read."""
    return Problem(MALFORMED, name, what)


class ImageFolder:
    """The images of a folder, by the names that tools give them.

    Args:
        folder: of the images; folders inside are looked into.
    """

    def __init__(self, folder: UPath) -> None:
        self._folder = folder
        self._by_path = {relative_to(path, folder): path for path in list_files(folder).files.values()}
        self._by_name: dict[str, list[UPath]] = {}
        for path in self._by_path.values():
            self._by_name.setdefault(path.name, []).append(path)

    def find(self, name: str) -> UPath | None:
        """Return the image of a path or address; None where there is none, or its name is several images'."""
        plain = name.replace("\\", "/").rpartition("?d=")[2]
        if plain in self._by_path:
            return self._by_path[plain]
        last = plain.rpartition("/")[2]
        uploaded = _UPLOADED.fullmatch(last)
        for each in (last, *([uploaded[1]] if uploaded else [])):
            found = self._by_name.get(each, [])
            if len(found) == 1:
                return found[0]
        return None

    def look(self, name: Any, size: Any, lost: int, problems: list[Problem]) -> tuple[UPath, int, int] | None:
        """Return an image with its height and width; None where it cannot be used.

        Args:
            name: that the tool gives it.
            size: its height and width, as the tool says; None where it says nothing.
            lost: objects that are lost with it.
            problems: what is wrong is added to these.
        """
        path = self.find(name) if isinstance(name, str) else None
        if path is None:
            said = f"no image of this name, or several, in {self._folder}"
            problems.append(Problem(NO_FILE, shown(name), said, lost))
            return None
        try:
            header = read_header(path)
        except ImageError as error:
            problems.append(Problem(BROKEN, str(path), str(error), lost))
            return None
        found = header.height, header.width
        if size is not None and tuple(size) != found:
            said = f"it is {found[1]} x {found[0]} pixels, and annotated as {shown(size[::-1])}"
            problems.append(Problem(OTHER_IMAGE_SIZE, str(path), said, lost))
            return None
        return path, *found


def record_of(
    path: UPath, size: tuple[int, int], shapes: Iterable[Shape], problems: list[Problem]
) -> ImageRecord:
    """Return the record of an image's shapes; what is wrong with them is added to `problems`."""
    drawn = list(shapes)
    problems += [each for each in drawn if isinstance(each, Problem)]
    return ImageRecord(path, *size, tuple(each for each in drawn if isinstance(each, ObjectAnnotation)))
