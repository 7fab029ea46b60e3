"""Reader of a folder of images and masks, one file an object."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from numpy.typing import NDArray
from upath import UPath

from mst.clicks import Mask
from mst.data.annotations import ImageRecord, ObjectAnnotation, Records
from mst.data.join import EMPTY
from mst.data.pixels.encode import annotate
from mst.data.pixels.images import read_file, read_header
from mst.data.pixels.mask_images import decode_mask
from mst.data.problems import Problem
from mst.data.readers.folders import list_files
from mst.data.readers.segmentations import OTHER_SIZE
from mst.errors import DataError, ImageError, MaskError

NO_PHOTO = "mask without an image"
NO_PNG = "mask that is no PNG"
UNREADABLE = "mask missing or unreadable"
TWO_MEANINGS = "mask that can mean two things"
BROKEN_IMAGE = "image missing or unreadable"

_Pixels = TypeVar("_Pixels", bound=NDArray[Any])
_NUMBERED = re.compile(r"(.+)[_#][^_#/]+", re.DOTALL)


def read_pairs(root: UPath, images: UPath | None = None) -> Records:
    """Read `root/images/NAME.jpg` (.png, ...) with the masks of its objects.

    The masks are `root/masks/NAME.png`, `NAME_K.png` or `NAME#K.png`, one object each; what is object in them
    `mst.data.pixels.mask_images.decode_mask` says. Folders inside are read too, and are parts of the names:
    `images/session1/NAME.jpg` has the mask `masks/session1/NAME.png`.

    A mask that is named like an image belongs to it, even where the name could be read as another's `NAME_K`.

    Args:
        root: the folder.
        images: folder of the images, where it is not `root/images`.

    Returns:
        A record for each image, by name, images without masks included; and what was left out: masks without
        any object, without an image, of another size, unreadable, no PNG, or of two meanings.

    Raises:
        DataError: the folder has another layout, or two images or two masks have one name.
    """
    folder = images or root / "images"
    pictures, masks = list_files(folder), list_files(root / "masks")
    if not pictures.files or not masks.files:
        raise DataError(
            f"{root}: expected images {folder}/NAME.jpg and masks {root}/masks/NAME.png or NAME_K.png; "
            f"found {len(pictures.files)} images and {len(masks.files)} masks"
        )
    problems = [*pictures.passed_over, *masks.passed_over]
    by_image = _assign(masks.files.items(), pictures.files, problems)
    records = []
    for name, picture in pictures.files.items():
        record = _record(picture, by_image[name], problems)
        if record is not None:
            records.append(record)
    return Records(records, tuple(problems))


def _assign(
    masks: Iterable[tuple[str, UPath]], pictures: dict[str, UPath], problems: list[Problem]
) -> defaultdict[str, list[UPath]]:
    by_image = defaultdict(list)
    for name, path in masks:
        numbered = _NUMBERED.fullmatch(name)
        owner = numbered[1] if name not in pictures and numbered else name
        if path.suffix.lower() != ".png":
            problems.append(
                Problem(NO_PNG, str(path), "a mask is a PNG file, which keeps its values as they are")
            )
        elif owner not in pictures:
            problems.append(
                Problem(NO_PHOTO, str(path), f"there is no image named '{owner}' that it could be of")
            )
        else:
            by_image[owner].append(path)
    return by_image


def _record(picture: UPath, paths: list[UPath], problems: list[Problem]) -> ImageRecord | None:
    """The image and its objects; None where the image itself would have to be read, and cannot be."""
    read = read_files(picture, paths, _mask, problems)
    if read is None:
        return None
    masks, shape = read
    found = [_annotated(mask, shape, path) for path, mask in masks.items()]
    problems += [each for each in found if isinstance(each, Problem)]
    objects = tuple(each for each in found if isinstance(each, ObjectAnnotation))
    return ImageRecord(picture, *shape, objects)


def read_files(
    picture: UPath,
    paths: Iterable[UPath],
    read: Callable[[UPath], _Pixels | Problem],
    problems: list[Problem],
) -> tuple[dict[UPath, _Pixels], tuple[int, int]] | None:
    """Read the files of an image's objects, and find the image's height and width.

    Args:
        picture: the image.
        paths: of the files.
        read: reads one, or says what is wrong with it.
        problems: what is wrong is added to these.

    Returns:
        The files that could be read, and the size; None where the image itself would have to be read, and
        cannot be.
    """
    pixels: dict[UPath, _Pixels] = {}
    for path in paths:
        found = read(path)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            pixels[path] = found
    shape = _shape_of(picture, pixels.values())
    if isinstance(shape, Problem):
        problems.append(shape._replace(lost=len(pixels)))
        return None
    return pixels, shape


def _shape_of(picture: UPath, masks: Collection[NDArray[Any]]) -> tuple[int, int] | Problem:
    """Return an image's height and width: its masks', where these agree, so that it need not be read yet."""
    shapes = {(each.shape[0], each.shape[1]) for each in masks}
    if len(shapes) == 1:
        return shapes.pop()
    try:
        header = read_header(picture)
    except ImageError as error:
        return Problem(BROKEN_IMAGE, str(picture), str(error))
    return header.height, header.width


def _mask(path: UPath) -> Mask | Problem:
    try:
        return decode_mask(read_file(path), str(path))
    except MaskError as error:
        return Problem(TWO_MEANINGS, str(path), str(error))
    except ImageError as error:
        return Problem(UNREADABLE, str(path), str(error))


def _annotated(mask: Mask, shape: tuple[int, int], path: UPath) -> ObjectAnnotation | Problem:
    if mask.shape != shape:
        what = f"{mask.shape[1]} x {mask.shape[0]} pixels, its image has {shape[1]} x {shape[0]}"
        return Problem(OTHER_SIZE, str(path), what)
    if not mask.any():
        return Problem(EMPTY, str(path), "the mask is empty", lost=0)
    return annotate(mask, path.name)
