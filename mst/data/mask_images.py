"""Masks as image files hold them: strict about broken files, careful with huge ones, as `mst.data.images`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from mst.clicks import Mask
from mst.data.files import Fetch, fetch
from mst.data.images import MAX_PIXELS, opened, read_file
from mst.errors import DataError

_HALF = 128


def read_labels(path: UPath, fetch: Fetch = fetch) -> NDArray[Any]:
    """Read a label image (trimap, palette or grey levels) without any conversion, (H, W).

    Raises:
        DataError: as `decode_labels`, or the file is missing.
    """
    return decode_labels(read_file(path, fetch), str(path))


def decode_labels(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Decode an image of labels without any conversion, (H, W).

    Args:
        data: the file's bytes.
        name: what to call the image in errors.
        max_pixels: most pixels (H * W) to accept; checked before any pixel is decoded.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, or a broken one.
        DataError: an image of colours.
    """
    with opened(data, name, max_pixels) as image:
        labels = np.asarray(image)
        if labels.ndim != 2:
            raise DataError(f"{name}: expected one label per pixel, found an image of mode {image.mode}")
    return labels


def decode_mask(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Mask:
    """Decode the mask of one object, (H, W).

    In an image of one channel (black and white, grey levels, palette indices) all that is not 0 is object; in
    one of colours, all whose mean of red, green and blue is at least 128. An alpha channel says nothing.

    Args:
        data: the file's bytes.
        name: what to call the image in errors.
        max_pixels: most pixels (H * W) to accept; checked before any pixel is decoded.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, or a broken one.
    """
    with opened(data, name, max_pixels) as image:
        pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 2:  # grey and alpha
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return np.asarray(pixels != 0)
    return np.asarray(pixels[..., :3].mean(axis=2) >= _HALF)
