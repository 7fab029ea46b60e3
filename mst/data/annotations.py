"""What a data set says of an image: its file, its size and the masks of its objects."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, overload

from pycocotools import mask as coco_mask
from upath import UPath

from mst.clicks import Mask
from mst.data.files import Fetch, fetch
from mst.data.pixels.arrays import as_image, as_mask
from mst.data.pixels.images import RGB, read_header, read_image
from mst.data.pixels.runs import Runs, paint
from mst.data.problems import Problem, lost_by_kind
from mst.errors import AnnotationError, DataError, ImageError, MaskError, NothingToClickError, SizeError

Segmentation = Sequence[Sequence[float]] | Mapping[str, Any]
"""COCO's two forms: polygons [x1, y1, x2, y2, ...] or a run-length encoding {"size", "counts"}."""


class Extent(NamedTuple):
    """What is measured of a mask."""

    area: float
    """In pixels."""
    box: tuple[float, float, float, float]
    """top, left, bottom, right in pixels, half-open; all 0 for an empty mask."""


class Declared(NamedTuple):
    """What an annotation file says of a mask, as it stands there: only a check looks at it."""

    area: Any = None
    box: Any = None
    """COCO's [left, top, width, height]."""


@contextmanager
def malformed(name: str) -> Iterator[None]:
    """Name the annotation that pycocotools stumbles over; it raises whatever its C code happens to."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise AnnotationError(f"{name}: malformed segmentation ({error})") from None


@dataclass(frozen=True)
class ObjectAnnotation:
    """The mask of one object, as the annotation file writes it."""

    segmentation: Segmentation
    height: int
    width: int
    name: str
    """Where the annotation stands, for errors and records."""
    parent: int = -1
    """Place among the image's objects of the smallest one that contains this one; -1 for none."""
    is_stuff: bool = False
    """Whether it is a region without a countable shape (sky, grass)."""
    measured: Extent | None = None
    """Area and box, where they were measured already."""
    declared: Declared | None = None
    """None where no file says anything."""

    @cached_property
    def extent(self) -> Extent:
        """Area and box of the mask itself, whatever a file says of them.

        Raises:
            AnnotationError: as `rle` says.
        """
        if self.measured is not None:
            return self.measured
        encoded = self.rle()
        with malformed(self.name):
            left, top, width, height = coco_mask.toBbox(encoded).tolist()
            return Extent(float(coco_mask.area(encoded)), (top, left, top + height, left + width))

    @property
    def area(self) -> float:
        """Pixels of the mask."""
        return self.extent.area

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The mask's top, left, bottom, right in pixels, half-open."""
        return self.extent.box

    def rle(self) -> dict[str, Any]:
        """Return the mask as COCO's compressed run-length encoding.

        Raises:
            AnnotationError: the segmentation is malformed, or an encoding of another image size.
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
                raise AnnotationError(f"{self.name}: the counts of the mask do not add up to {shape}")
            encoded: dict[str, Any] = coco_mask.frPyObjects(dict(self.segmentation), *shape)
            return encoded
        return dict(self.segmentation)

    def runs(self) -> Runs:
        """Return the runs of pixels that are the object's.

        Raises:
            AnnotationError: as `rle` says.
        """
        with malformed(self.name):
            return Runs.parse(self.rle()["counts"], self.height, self.width)

    def decode(self) -> Mask:
        """Return the mask, (H, W).

        Raises:
            AnnotationError: as `rle` says.
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
                f"{self.path}: the image has {image.shape[0]} x {image.shape[1]} pixels, its annotation says "
                f"{self.height} x {self.width}{self._turned(fetch)}"
            )
        return image

    def _turned(self, fetch: Fetch) -> str:
        """What to add where the annotation is of the pixels as they are stored."""
        header = read_header(self.path, fetch)
        if header.orientation == 1 or header.stored != (self.height, self.width):
            return ""
        return (
            f", as the pixels are stored; EXIF orientation {header.orientation} turns them, and pixels are "
            "always upright here: turn the annotation, or remove the flag from the file"
        )

    def with_objects(self, objects: Sequence[ObjectAnnotation]) -> "ImageRecord":
        """Return the same image with other objects."""
        return replace(self, objects=tuple(objects))


@dataclass(frozen=True)
class Records(Sequence[ImageRecord]):
    """The images of a data set, and what was left out of it."""

    images: Sequence[ImageRecord]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, number: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ImageRecord]: ...
    def __getitem__(self, number: int | slice) -> ImageRecord | Sequence[ImageRecord]:
        return self.images[number]

    @property
    def left_out(self) -> Counter[str]:
        """How many objects were left out, by why."""
        return lost_by_kind(self.problems)


@dataclass(frozen=True)
class Sample:
    """One object to be segmented by clicks, as an evaluation takes it.

    The image and the masks may have any form that `mst.data.pixels.arrays` takes.

    Raises:
        ImageError: the image is none that has one meaning.
        MaskError: a mask is none, or has another size than the image.
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
    image_id: str = ""
    """The same for all objects of an image, which intervals take together; empty for an image of its own."""

    def __post_init__(self) -> None:
        if not self.image_id:
            object.__setattr__(self, "image_id", self.name)
        self._take("image", as_image)
        of_its_size = partial(as_mask, shape=self.image.shape[:2])
        self._take("mask", of_its_size)
        for what in ("void", "init_mask"):
            if getattr(self, what) is not None:
                self._take(what, of_its_size)
        if problem := self._nothing_to_click():
            raise NothingToClickError(f"{self.name}: {problem}")

    def _take(self, what: str, plain: Callable[[Any], Any]) -> None:
        try:
            value = plain(getattr(self, what))
        except (ImageError, MaskError) as error:
            raise type(error)(f"{self.name}, {what}: {error}") from None
        object.__setattr__(self, what, value)  # as dataclasses do where they are frozen

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
