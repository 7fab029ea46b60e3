"""Reader of a folder of images and masks, one file an object."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable

from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.encode import annotate
from mst.data.files import fetch
from mst.data.images import read_image
from mst.data.mask_images import decode_mask
from mst.errors import DataError, ImageError

_log = logging.getLogger(__name__)

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
_NUMBERED = re.compile(r"(.+)[_#][^_#]+", re.DOTALL)


def read_pairs(root: UPath, images: UPath | None = None) -> list[ImageRecord]:
    """Read `root/images/NAME.jpg` (.png, ...) with the masks of its objects.

    The masks are `root/masks/NAME.png`, `NAME_K.png` or `NAME#K.png`, one object each. In a mask of one
    channel all that is not 0 is object; in one of colours, all whose mean is at least 128.

    A mask that is named like an image belongs to it, even where the name could be read as another's `NAME_K`.
    A mask without any object is left out with a warning. Files that are no images (`.DS_Store`) are ignored.

    Args:
        root: the folder.
        images: folder of the images, where it is not `root/images`.

    Returns:
        A record for each image, by name; images without masks included.

    Raises:
        DataError: the folder has another layout, two images have one name, a mask is unreadable or no PNG or
            lacks its image, or the masks of an image differ in size.
    """
    folder = images or root / "images"
    pictures, masks = _pictures(folder), _image_files(root / "masks")
    if not pictures or not masks:
        raise DataError(
            f"{root}: expected images {folder}/NAME.jpg and masks {root}/masks/NAME.png or NAME_K.png; "
            f"found {len(pictures)} images and {len(masks)} masks"
        )
    by_image = _assign(masks, pictures)
    return [_record(picture, by_image[name]) for name, picture in pictures.items()]


def _image_files(folder: UPath) -> list[UPath]:
    found = sorted(folder.iterdir(), key=str) if folder.is_dir() else []
    return [path for path in found if path.suffix.lower() in _IMAGE_SUFFIXES and path.name[0] != "."]


def _pictures(folder: UPath) -> dict[str, UPath]:
    pictures: dict[str, UPath] = {}
    for path in _image_files(folder):
        if path.stem in pictures:
            raise DataError(f"{path}: the masks cannot tell it from {pictures[path.stem].name}; rename one")
        pictures[path.stem] = path
    return pictures


def _assign(masks: Iterable[UPath], pictures: dict[str, UPath]) -> defaultdict[str, list[UPath]]:
    by_image = defaultdict(list)
    for path in masks:
        if path.suffix.lower() != ".png":
            raise DataError(f"{path}: a mask is a PNG file, which keeps its values as they are")
        numbered = _NUMBERED.fullmatch(path.stem)
        name = numbered[1] if path.stem not in pictures and numbered else path.stem
        if name not in pictures:
            raise DataError(f"{path}: there is no image named '{name}' that it could be a mask of")
        by_image[name].append(path)
    return by_image


def _record(picture: UPath, masks: list[UPath]) -> ImageRecord:
    read = {path: _annotated(path) for path in masks}
    objects = tuple(each for each in read.values() if each is not None)
    sizes = {(each.height, each.width) for each in objects} or {read_image(picture).shape[:2]}
    if len(sizes) != 1:
        raise DataError(f"{masks[0]}: the masks of this image have the sizes {sorted(sizes)}")
    return ImageRecord(picture, *sizes.pop(), objects)


def _annotated(path: UPath) -> ObjectAnnotation | None:
    try:
        mask = decode_mask(fetch(path), str(path))
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None
    if not mask.any():
        _log.warning("%s: the mask is empty and is left out", path)
        return None
    return annotate(mask, path.name)
