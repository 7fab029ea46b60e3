"""What a data set says of an image: its file, its size and the masks of its objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mst.clicks import Mask
from mst.data.images import RGB, read_image
from mst.errors import DataError

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any]
"""COCO's two forms: polygons [x1, y1, x2, y2, ...] or a run-length encoding {"size", "counts"}."""


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

    def rle(self) -> dict[str, Any]:
        """Return the mask as COCO's compressed run-length encoding.

        Raises:
            DataError: the segmentation is malformed, or an encoding of another image size.
        """
        shape = (self.height, self.width)
        try:
            if isinstance(self.segmentation, Mapping):
                if tuple(self.segmentation["size"]) != shape:
                    found = tuple(self.segmentation["size"])
                    raise DataError(f"{self.name}: the mask has size {found}, its image {shape}")
                if isinstance(self.segmentation["counts"], list):
                    encoded: dict[str, Any] = coco_mask.frPyObjects(dict(self.segmentation), *shape)
                    return encoded
                return dict(self.segmentation)
            merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(list(self.segmentation), *shape))
            return merged
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{self.name}: malformed segmentation ({error})") from None

    def decode(self) -> Mask:
        """Return the mask, (H, W)."""
        return np.asarray(coco_mask.decode(self.rle()), dtype=bool)


@dataclass(frozen=True)
class ImageRecord:
    """An image of a data set and the objects annotated in it."""

    path: Path
    height: int
    width: int
    objects: tuple[ObjectAnnotation, ...]

    def read(self) -> RGB:
        """Read the image, (H, W, 3).

        Raises:
            ImageError: the file is missing or broken.
            DataError: its size is not the annotated one.
        """
        image = read_image(self.path)
        if image.shape[:2] != (self.height, self.width):
            raise DataError(
                f"{self.path}: the image has {image.shape[0]} x {image.shape[1]} pixels, "
                f"its annotation says {self.height} x {self.width}"
            )
        return image

    def with_objects(self, objects: Sequence[ObjectAnnotation]) -> "ImageRecord":
        """Return the same image with other objects."""
        return replace(self, objects=tuple(objects))


@dataclass(frozen=True)
class Sample:
    """One object to be segmented by clicks, as an evaluation takes it."""

    name: str
    image: RGB
    mask: Mask
    """The object, (H, W)."""
    void: Mask | None = field(default=None)
    """Pixels that count neither for IoU nor for clicks, (H, W); None for no such pixels."""

    def __post_init__(self) -> None:
        shape = self.image.shape[:2]
        for what, mask in (("mask", self.mask), ("void mask", self.void)):
            if mask is not None and mask.shape != shape:
                raise DataError(f"{self.name}: the {what} has size {mask.shape}, its image {shape}")
        if not self.mask.any():
            raise DataError(f"{self.name}: the mask is empty")


def resolve_inside(folder: Path, relative: str, name: str) -> Path:
    """Return `folder / relative`, where `relative` comes from a data file and may not leave the folder.

    Raises:
        DataError: it would leave the folder; `name` says where it was written.
    """
    base = folder.resolve()
    path = (base / relative).resolve()
    if not path.is_relative_to(base):
        raise DataError(f"{name}: the path '{relative}' leads outside {base}")
    return path
