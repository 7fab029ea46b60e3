"""Masks as image files hold them: strict about broken files, as `mst.data.pixels.images`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from mst.clicks import Mask
from mst.data.files import Fetch, fetch
from mst.data.pixels.images import MAX_PIXELS, RGB, has_alpha, opened, orientation, read_file, upright
from mst.errors import DataError, MaskError

_HALF = 127  # of an alpha channel: what is above shows
_SOFT = 16  # grey levels from which on a mask has soft edges; fewer are labels
_RIGHT = "save it with a black background and the object in one other colour, one file for each object"


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
        labels = upright(np.asarray(image), orientation(image))
        if labels.ndim != 2:
            raise DataError(f"{name}: expected one label per pixel, found an image of mode {image.mode}")
    return labels


def decode_mask(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Mask:
    """Decode the mask of one object: the one rule for masks of data sets and for masks to be corrected.

    What counts is the picture as a person sees it, with its palette and its transparency:

    - black, and what is transparent, is background;
    - one other colour, grey level or label, whichever it is, is the object: 0/1, 0/255, 16 bits, a palette
      in any order, red on black, an alpha channel over one colour;
    - grey levels, or an alpha channel, from black to white with soft edges between are cut at the half.

    Args:
        data: the file's bytes.
        name: what to call the image in errors.
        max_pixels: most pixels (H * W) to accept; checked before any pixel is decoded.
        formats: those that are read, by Pillow's names; all that it knows if None.

    Returns:
        (H, W), upright as EXIF says.

    Raises:
        ImageTooLargeError: more than `max_pixels`.
        ImageError: no image, or a broken one.
        MaskError: the file can mean two things: two colours of which none is black, more than two, or colours
            and transparency that say different things.
    """
    with opened(data, name, max_pixels, formats) as image:
        return upright(_object_of(image, name), orientation(image))


def _object_of(image: Image.Image, name: str) -> Mask:
    """The object's pixels, as they are stored."""
    if has_alpha(image):
        seen = np.asarray(image.convert("RGBA"))
        return _of_transparent(seen[..., :3], seen[..., 3], name)
    if image.mode in ("1", "L") or image.mode.startswith(("I", "F")):
        levels = np.asarray(image)
        return _of_levels(levels.astype(np.uint8) * 255 if levels.dtype == bool else levels, name)
    labels = np.asarray(image) if image.mode == "P" else None
    colours = np.asarray(image.convert("RGB"))
    if labels is not None and (colours == colours[0, 0]).all() and (labels != labels[0, 0]).any():
        raise MaskError(f"{name}: its palette shows all labels in one colour; {_RIGHT}")
    return _of_colours(colours, name)


def _of_transparent(colours: RGB, alpha: NDArray[np.uint8], name: str) -> Mask:
    """The object in an image (H, W, 3) with transparency (H, W)."""
    if not alpha.any():
        return np.zeros(alpha.shape, bool)
    if (alpha == alpha[0, 0]).all():
        return _of_colours(colours, name)
    if (colours == colours[0, 0]).all():
        return _of_levels(alpha, name)
    found = _of_colours(np.where(alpha[..., None] > _HALF, colours, np.uint8(0)), name)
    if not found.any():
        raise MaskError(f"{name}: its colours and its transparency say different things; {_RIGHT}")
    return found


def _of_colours(colours: RGB, name: str) -> Mask:
    """The object in an image (H, W, 3)."""
    if (colours[..., :1] == colours[..., 1:]).all():
        return _of_levels(colours[..., 0], name)
    found = _of_two(colours.astype(np.uint32) @ np.array([1, 2**8, 2**16], np.uint32))
    if found is None:
        raise MaskError(f"{name}: it has several colours beside black; {_RIGHT}")
    return found


def _of_levels(levels: NDArray[Any], name: str) -> Mask:
    """The object in grey levels or labels (H, W)."""
    found = _of_two(levels)
    if found is not None:
        return found
    values, counts = np.unique(levels, return_counts=True)
    white = np.iinfo(levels.dtype).max if np.issubdtype(levels.dtype, np.integer) else 1
    ends = counts[(values == 0) | (values == white)]
    if len(values) >= _SOFT and len(ends) == 2 and 2 * ends.sum() >= levels.size:
        return np.asarray(levels > white / 2)
    few = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
    raise MaskError(f"{name}: it has the levels {few}; {_RIGHT}")


def _of_two(values: NDArray[Any]) -> Mask | None:
    """Where an image (H, W) is not black; None where what is not has several values."""
    found = np.asarray(values != 0)
    other = values[found]
    return found if not other.size or (other == other[0]).all() else None
