"""Images and masks as callers have them: taken where they have one meaning, refused by name elsewhere."""

from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mst.clicks import Mask
from mst.data.files import as_path
from mst.data.pixels.images import RGB, decode_image, decoding, orientation, read_file, rgb_of, upright
from mst.errors import DataError, ImageError, MaskError

AnyImage = RGB | Image.Image | bytes | str | PathLike[str]
"""uint8 pixels, grey (H, W) or (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); an image of Pillow; bytes of an
image file, or its path."""

_RIGHT = (
    "give uint8 pixels of 0..255 as (H, W), (H, W, 3) or (H, W, 4), an image of Pillow, or an image file's "
    "bytes or path"
)


def as_image(image: Any) -> RGB:
    """Return an image as RGB (H, W, 3) uint8, upright; such an array is returned as it is.

    Args:
        image: see `AnyImage`. What is transparent shows white; files and images of Pillow are turned as EXIF
            says.

    Raises:
        ImageError: anything else, such as pixels in 0..1, of which nobody knows what is white; or a file that
            is missing or no image.
    """
    if isinstance(image, np.ndarray):
        return _of_array(image)
    if isinstance(image, Image.Image):
        with decoding("the image of Pillow"):  # which reads a file's pixels only now
            return upright(rgb_of(image), orientation(image))
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, str | PathLike):
        return decode_image(read_bytes(image), name=str(image))
    raise ImageError(f"the image is {_named(image)}; {_RIGHT}")


def read_bytes(path: str | PathLike[str]) -> bytes:
    """Read an image file.

    Raises:
        ImageError: it is missing, or the path is none.
        DataError: its store cannot be reached.
    """
    try:
        place = as_path(path)
    except DataError as error:
        raise ImageError(str(error)) from None
    return read_file(place)


def as_mask(mask: Any, shape: tuple[int, int] | None = None) -> Mask:
    """Return a mask as bool (H, W); such an array is returned as it is.

    Args:
        mask: of bool, or of whole numbers that are 0 and 1, or 0 and 255, alone.
        shape: H and W that it must have; None where that is not known.

    Raises:
        MaskError: anything else.
    """
    right = "give a bool array (H, W), or whole numbers of 0 and 1, or of 0 and 255"
    if not isinstance(mask, np.ndarray):
        raise MaskError(f"the mask is {_named(mask)}; {right}")
    if mask.ndim != 2 or not mask.size:
        raise MaskError(f"the mask has the shape {mask.shape}; {right}")
    if shape is not None and mask.shape != shape:
        raise MaskError(f"the mask has the shape {mask.shape}, its image {shape}")
    if mask.dtype == bool:
        return mask
    if not np.issubdtype(mask.dtype, np.integer):
        raise MaskError(f"the mask is of {mask.dtype}; {right}, as in `mask > 0.5`")
    found = mask != 0
    values = np.unique(mask[found])
    if values.size and values.tolist() not in ([1], [255]):
        raise MaskError(f"the mask has the values {values[:4].tolist()} beside 0; {right}")
    return np.asarray(found)


def _of_array(image: NDArray[Any]) -> RGB:
    image = np.asarray(image)  # np.matrix would stay two-dimensional
    if image.dtype != np.uint8:
        hint = (
            ", as in `(image * 255).round().astype(np.uint8)`"
            if np.issubdtype(image.dtype, np.floating)
            else ""
        )
        raise ImageError(f"the image is of {image.dtype}; {_RIGHT}{hint}")
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        hint = ", as in `image.transpose(1, 2, 0)`" if image.ndim == 3 and image.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"the image has the shape {image.shape}; {_RIGHT}{hint}")
    if channels == 3:
        return np.ascontiguousarray(image)  # a copy only where rows or columns are not in their order
    if channels == 4:
        return rgb_of(Image.fromarray(np.ascontiguousarray(image)))
    return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)


def _named(value: Any) -> str:
    kind = type(value)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("a builtins.", "a ")
