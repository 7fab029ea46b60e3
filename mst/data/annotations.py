"""What a data set says of an image: its file, its size and the masks of its objects."""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from pycocotools import mask as coco_mask
from upath import UPath

from mst.clicks import Mask
from mst.data.files import Fetch, fetch
from mst.data.images import RGB, read_image
from mst.data.runs import Runs, paint
from mst.errors import DataError, NothingToClickError, SizeError

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any]
"""COCO's two forms: polygons [x1, y1, x2, y2, ...] or a run-length encoding {"size", "counts"}."""


@contextmanager
def malformed(name: str) -> Iterator[None]:
    """Name the annotation that pycocotools stumbles over; it raises whatever its C code happens to."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: malformed segmentation ({error})") from None


@dataclass(frozen=True)
class ObjectAnnotation:
    """The mask of one object, as the annotation file writes it."""

    segmentation: Segmentation
    height: int
    width: int
    area: float
    """In pixels, as the annotation file gives it."""
    box: tuple[float, float, float, float]
    """top, left, bottom, right in pixels."""
    name: str
    """Where the annotation stands, for errors and records."""
    parent: int = -1
    """Place among the image's objects of the smallest one that contains this one; -1 for none."""
    is_stuff: bool = False
    """Whether it is a region without a countable shape (sky, grass)."""

    def rle(self) -> dict[str, Any]:
        """Return the mask as COCO's compressed run-length encoding.

        Raises:
            DataError: the segmentation is malformed, or an encoding of another image size.
        """
        with malformed(self.name):
            return self._encoded()

    def _encoded(self) -> dict[str, Any]:
        shape = (self.height, self.width)
        if not isinstance(self.segmentation, Mapping):
            merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(list(self.segmentation), *shape))
            return merged
        found = tuple(self.segmentation["size"])
        if found != shape:
            raise SizeError(f"{self.name}: the mask has size {found}, its image {shape}")
        if isinstance(self.segmentation["counts"], list):
            if sum(self.segmentation["counts"]) != self.height * self.width:
                raise DataError(f"{self.name}: the counts of the mask do not add up to {shape}")
            encoded: dict[str, Any] = coco_mask.frPyObjects(dict(self.segmentation), *shape)
            return encoded
        return dict(self.segmentation)

    def runs(self) -> Runs:
        """Return the runs of pixels that are the object's.

        Raises:
            DataError: as `rle` says.
        """
        with malformed(self.name):
            return Runs.parse(self.rle()["counts"], self.height, self.width)

    def decode(self) -> Mask:
        """Return the mask, (H, W).

        Raises:
            DataError: as `rle` says.
        """
        return paint([self.runs()], self.height, 0, self.width)


@dataclass(frozen=True)
class ImageRecord:
    """An image of a data set and the objects annotated in it."""

    path: UPath
    height: int
    width: int
    objects: tuple[ObjectAnnotation, ...]

    def read(self, fetch: Fetch = fetch) -> RGB:
        """Read the image, (H, W, 3).

        Raises:
            ImageError: the file is missing or broken.
            SizeError: its size is not the annotated one.
        """
        image = read_image(self.path, fetch)
        if image.shape[:2] != (self.height, self.width):
            raise SizeError(
                f"{self.path}: the image has {image.shape[0]} x {image.shape[1]} pixels, "
                f"its annotation says {self.height} x {self.width}"
            )
        return image

    def with_objects(self, objects: Sequence[ObjectAnnotation]) -> "ImageRecord":
        """Return the same image with other objects."""
        return replace(self, objects=tuple(objects))


@dataclass(frozen=True)
class Sample:
    """One object to be segmented by clicks, as an evaluation takes it.

    Raises:
        DataError: a mask has another size than the image.
        NothingToClickError: the object is empty, all void, or its initial mask is right already.
    """

    name: str
    image: RGB
    mask: Mask
    """The object, (H, W)."""
    void: Mask | None = field(default=None)
    """Pixels that count neither for IoU nor for clicks, (H, W); None for no such pixels."""
    init_mask: Mask | None = None
    """Mask from which the clicks start, (H, W); None to start from nothing."""
    size_class: str = ""
    """Group of sizes under which a report counts the object; empty for none."""

    def __post_init__(self) -> None:
        shape = self.image.shape[:2]
        masks = (("mask", self.mask), ("void mask", self.void), ("initial mask", self.init_mask))
        for what, mask in masks:
            if mask is not None and mask.shape != shape:
                raise DataError(f"{self.name}: the {what} has size {mask.shape}, its image {shape}")
        if problem := self._nothing_to_click():
            raise NothingToClickError(f"{self.name}: {problem}")

    def _nothing_to_click(self) -> str:
        if not self.mask.any():
            return "the mask is empty"
        if self.void is not None and not (self.mask & ~self.void).any():
            return "the mask is void everywhere"
        if self.init_mask is not None:
            wrong = self.init_mask ^ self.mask
            if not (wrong if self.void is None else wrong & ~self.void).any():
                return "the initial mask is right already"
        return ""


def resolve_inside(folder: UPath, relative: str, name: str) -> UPath:
    """Return `folder / relative`, where `relative` comes from a data file and may not leave the folder.

    Links inside the folder were put there by whoever keeps it, and are followed.

    Raises:
        DataError: it would leave the folder; `name` says where it was written.
    """
    path = posixpath.normpath(relative)
    if path == ".." or path.startswith(("/", "../")) or "://" in relative or "\0" in relative:
        raise DataError(f"{name}: the path '{relative}' leads outside {folder}")
    return folder / path
