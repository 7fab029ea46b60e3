"""Image files to pixels as a person sees them: strict about broken files, careful with huge ones.

One rule for data sets, servers and clients, so that a mask fits its image wherever both were read: pixels are
upright (turned as the file's EXIF orientation says), what is transparent shows white, and grey levels of more
than 8 bits are stretched, the darkest to black and the brightest to white.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from upath import UPath

from mst.data.files import Fetch, fetch
from mst.errors import ImageError, ImageTooLargeError, MSTError

RGB = NDArray[np.uint8]
"""Pixels of an image, (H, W, 3), 0..255."""

MAX_PIXELS = 100_000_000

UPLOADED = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read from strangers; Pillow knows more, but some of it starts other programs (EPS) or is
hardly ever tested."""

_WRITTEN = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_ORIENTATION = 0x0112  # the tag of EXIF
_TRANSPOSING = (5, 6, 7, 8)  # orientations that swap height and width
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored[::-1].swapaxes(0, 1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: stored[:, ::-1].swapaxes(0, 1),
}
"""From pixels as they are stored to upright ones, by EXIF's orientation."""

_JPEG = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_PIECE = 2**16  # pixels that are stretched at once


class Header(NamedTuple):
    """What a file says of its pixels."""

    height: int
    """Of the upright image."""
    width: int
    orientation: int
    """EXIF's, 1..8; 1 for pixels that are stored upright."""

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width of the pixels as they are stored."""
        if self.orientation in _TRANSPOSING:
            return self.width, self.height
        return self.height, self.width


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str = "image",
    formats: tuple[str, ...] | None = None,
) -> RGB:
    """Decode an image file to what a person sees.

    The header's size is checked before any pixel is decoded, so that a small file which claims a huge
    image costs nothing.

    Args:
        data: the file's bytes; of several frames the first is read.
        max_pixels: most pixels (H * W) to accept.
        name: what to call the image in errors.
        formats: those that are read, by Pillow's names; all that it knows if None.

    Returns:
        (H, W, 3) uint8, upright.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, or a broken one (a truncated JPEG, say).
    """
    with opened(data, name, max_pixels, formats) as image:
        return upright(_colours(image, data, name), orientation(image))


def _colours(image: Image.Image, data: bytes, name: str) -> RGB:
    """The pixels in RGB, as they are stored."""
    if image.format == "JPEG" and image.mode == "RGB":
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), _JPEG)  # equal pixels, a quarter faster
        if pixels is None:
            raise ImageError(f"{name}: broken image (cut short, or damaged)")
        return np.asarray(pixels, np.uint8)
    return rgb_of(image)


def rgb_of(image: Image.Image) -> RGB:
    """Return the pixels of an image in RGB, (H, W, 3), as they are stored: not turned."""
    if image.mode.startswith(("I", "F")):  # Pillow would cut all that exceeds 255
        return _stretched(np.asarray(image))
    if has_alpha(image):
        over = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def has_alpha(image: Image.Image) -> bool:
    """Whether pixels of an image can be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _stretched(levels: NDArray[Any]) -> RGB:
    """Levels (H, W) to 0..255, piece by piece, as the arithmetic takes some 30 bytes a pixel.

    Files do not say how many bits they use.
    """
    flat = levels.ravel()
    pieces = [slice(start, start + _PIECE) for start in range(0, flat.size, _PIECE)]
    low = min(_numbers(flat[piece]).min() for piece in pieces)
    high = max(_numbers(flat[piece]).max() for piece in pieces)
    out = np.zeros((flat.size, 3), np.uint8)
    if high > low:
        for piece in pieces:
            grey = (_numbers(flat[piece]) - low) * (255 / (high - low))
            out[piece] = np.rint(grey)[:, None]
    return out.reshape(*levels.shape, 3)


def _numbers(levels: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(levels.astype(np.float64), copy=False, posinf=0, neginf=0)


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation of an image, 1..8; 1 where it says none, or nothing that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's parser raises whatever damaged tags lead it to; viewers show the pixels
        return 1
    return found if found in _TURNS else 1


def upright(stored: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn pixels (H, W, ...) as EXIF's orientation says."""
    turn = _TURNS.get(orientation)
    return np.ascontiguousarray(turn(stored)) if turn else stored


def read_header(path: UPath, fetch: Fetch = fetch) -> Header:
    """Read the size of an image file, and how it is turned; no pixel is decoded.

    Raises:
        ImageError: the file is missing or no image.
    """
    return header_of(read_file(path, fetch), str(path))


def header_of(data: bytes, name: str) -> Header:
    """Return what an image file says of its pixels, none of which is decoded; `name` is for errors.

    Raises:
        ImageError: it is no image.
    """
    with opened(data, name) as image:
        turned = orientation(image)
        width, height = image.size
        if turned in _TRANSPOSING:
            height, width = width, height
        return Header(height, width, turned)


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
    with decoding(name), Image.open(io.BytesIO(data), formats=formats) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageTooLargeError(f"{name}: {width} x {height} pixels; at most {max_pixels} are accepted")
        yield image


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Make one of our errors of whatever Pillow raises in the block.

    Raises:
        ImageTooLargeError, ImageError: as `opened`.
    """
    try:
        yield
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


def encode_image(image: RGB, suffix: str) -> bytes:
    """Return an image (H, W, 3) as a file of the format that a suffix names, as `.png`.

    Raises:
        ImageError: no format that is written has this suffix.
    """
    check_suffix(suffix)
    done, data = cv2.imencode(suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def check_suffix(suffix: str) -> None:
    """Refuse a suffix that names no format that is written.

    Raises:
        ImageError: see above.
    """
    if suffix.lower() not in _WRITTEN:
        raise ImageError(f"no image is written as '{suffix}'; there are {', '.join(_WRITTEN)}")


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
