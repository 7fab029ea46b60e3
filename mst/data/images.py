"""Image bytes to pixels: strict about broken files, careful with huge ones."""

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mst.errors import DataError, ImageError, ImageTooLargeError

RGB = NDArray[np.uint8]
"""Pixels of an image, (H, W, 3), 0..255."""

MAX_PIXELS = 100_000_000


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
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageTooLargeError(
                    f"{name}: {width} x {height} pixels; at most {max_pixels} are accepted"
                )
            if image.mode.startswith(("I", "F")):  # Pillow would cut all that exceeds 255
                raise ImageError(f"{name}: its grey levels have more than 8 bits; convert it to 8 bits first")
            turned = ImageOps.exif_transpose(image) if upright else image
            return np.asarray(turned.convert("RGB"))
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image of a known format") from None
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"{name}: {error}") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error ...
        raise ImageError(f"{name}: broken image ({error})") from None


def read_image(path: Path) -> RGB:
    """Read an image file to (H, W, 3) uint8.

    Raises:
        ImageError: the file is missing or no readable image.
    """
    return decode_image(_read(path), name=str(path))


def read_labels(path: Path) -> NDArray[Any]:
    """Read a label image (trimap, palette or grey levels) without any conversion, (H, W).

    Raises:
        ImageError: the file is missing or no readable image.
    """
    try:
        with Image.open(io.BytesIO(_read(path))) as image:
            labels = np.asarray(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{path}: broken image ({error})") from None
    if labels.ndim != 2:
        raise DataError(f"{path}: expected one label per pixel, found an image of mode {image.mode}")
    return labels


def resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize (H, W) or (H, W, 3): averaged where it shrinks on both sides, bilinear otherwise."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=interpolation))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
