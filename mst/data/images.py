"""Image bytes to pixels: strict about broken files, careful with huge ones."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from upath import UPath

from mst.data.files import Fetch, fetch
from mst.errors import ImageError, ImageTooLargeError, MSTError

RGB = NDArray[np.uint8]
"""Pixels of an image, (H, W, 3), 0..255."""

MAX_PIXELS = 100_000_000

_JPEG = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, upright: bool = False, name: str = "image"
) -> RGB:
    """Decode an image of any format that Pillow reads.

    The header's size is checked before any pixel is decoded, so that a small file which claims a huge
    image costs nothing.

    Args:
        data: the file's bytes.
        max_pixels: most pixels (H * W) to accept.
        upright: turn the image as its EXIF orientation says; data sets are annotated without that.
        name: what to call the image in errors.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, a broken one (a truncated JPEG, say), or one whose grey levels have more than
            8 bits, of which nobody knows what should be black and what white.
    """
    with opened(data, name, max_pixels) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut all that exceeds 255
            raise ImageError(f"{name}: its grey levels have more than 8 bits; convert it to 8 bits first")
        if image.format == "JPEG" and image.mode == "RGB" and not upright:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _JPEG)  # equal pixels, a quarter faster
            if pixels is None:
                raise ImageError(f"{name}: broken image (cut short, or damaged)")
            return np.asarray(pixels, np.uint8)
        turned = ImageOps.exif_transpose(image) if upright else image
        return np.asarray(turned if turned.mode == "RGB" else turned.convert("RGB"))


@contextmanager
def opened(
    data: bytes, name: str, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open an image, whose pixels are decoded in the block; whatever goes wrong there is one of our errors.

    Args:
        data: the file's bytes.
        name: what to call the image in errors.
        max_pixels: most pixels (H * W) to accept.
        formats: those that are read, by Pillow's names; all that it knows if None.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, or a broken one.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageTooLargeError(
                    f"{name}: {width} x {height} pixels; at most {max_pixels} are accepted"
                )
            yield image
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a known format") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: {error}") from None
    except MSTError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageError(f"{name}: broken image ({error})") from None


def read_image(path: UPath, fetch: Fetch = fetch) -> RGB:
    """Read an image file to (H, W, 3) uint8.

    Raises:
        ImageError: the file is missing or no readable image.
    """
    return decode_image(read_file(path, fetch), name=str(path))


def resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize (H, W) or (H, W, 3): averaged where it shrinks on both sides, bilinear otherwise."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation))


def read_file(path: UPath, fetch: Fetch = fetch) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: it is missing, or may not be read.
        DataError: its store cannot be reached.
    """
    try:
        return fetch(path)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}") from None
