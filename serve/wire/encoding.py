"""Masks on the wire: COCO's run-length encoding, PNG, or polygons."""

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

from mst.clicks import Mask
from mst.data.pixels.base64_text import from_base64
from mst.data.pixels.encode import encode_rle
from mst.data.pixels.mask_images import decode_mask
from mst.errors import ClickError, ImageError, MaskError
from mst.predictor import Probabilities
from serve.wire.outlines import polygons
from serve.wire.schemas import RLE, MaskFormat, Polygon

_PIECE = 2**16  # letters of run lengths that are decoded at once


def encode(
    mask: Mask, form: MaskFormat, tolerance: float = 0.0, min_area: float = 0.0
) -> RLE | str | list[Polygon]:
    """Encode a mask (H, W) as `rle`, as `png` in base64, or as `polygons` of so much error (`polygons`)."""
    if form == "rle":
        return rle(mask)
    return text(png(mask)) if form == "png" else polygons(mask, tolerance, min_area)


def rle(mask: Mask) -> RLE:
    """Encode a mask (H, W) as COCO's compressed run-length encoding."""
    return RLE(size=mask.shape, counts=encode_rle(mask).decode())


def png(mask: Mask) -> bytes:
    """Encode a mask (H, W) as a grey PNG file of 0 and 255."""
    return _png(mask.astype(np.uint8) * 255)


def probability_png(probabilities: Probabilities) -> bytes:
    """Encode probabilities (H, W) as a grey PNG file: 255 times the probability, rounded."""
    return _png(np.rint(probabilities * 255).astype(np.uint8))


def json_rows(mask: Mask) -> bytes:
    """`json.dumps(mask.tolist())` of a mask (H, W) with 0 and 1, some hundred times as fast."""
    height, width = mask.shape
    text = np.full((height, 2 * width + 2), ord(","), np.uint8)
    text[:, 0] = ord("[")
    text[:, 1:-1:2] = mask + np.uint8(ord("0"))
    text[:, -2] = ord("]")
    return b"[" + text.tobytes()[:-1] + b"]"


def text(data: bytes) -> str:
    """Bytes as base64, for JSON."""
    return base64.b64encode(data).decode()


def decode_rle(encoded: RLE, height: int, width: int) -> Mask:
    """Decode COCO's compressed run-length encoding of a mask of a known size.

    COCO's own decoder writes beyond its memory where the counts are wrong, so this is another.

    Raises:
        ClickError: another size, or counts that do not fill it.
    """
    if tuple(encoded.size) != (height, width):
        raise ClickError(f"the mask has size {list(encoded.size)}, the image {[height, width]}")
    pixels = height * width
    # A run is one letter and, where it differs from the one before the last by 16 or more, a few others: the
    # differences of all runs add up to twice the pixels at most.
    most = 1 + pixels + pixels // 8
    if len(encoded.counts) > most:
        letters = len(encoded.counts)
        raise ClickError(
            f"the mask's counts have {letters} letters; {height} x {width} pixels need at most {most}"
        )
    mask = _filled(np.frombuffer(encoded.counts.encode("ascii", "replace"), np.uint8) - np.uint8(48), pixels)
    if mask is None:
        raise ClickError(f"the mask's counts do not add up to {height} x {width} pixels")
    return np.ascontiguousarray(mask.reshape(width, height).T)


def decode_png(encoded: str, height: int, width: int) -> Mask:
    """Decode a mask that came as an image file, base64; `mst.data.pixels.mask_images.decode_mask` says how.

    Raises:
        ClickError: no base64, no image, one of another size, or one that can mean two things.
    """
    try:
        data = from_base64(encoded)
        mask = decode_mask(data, "the mask", max_pixels=height * width, formats=("PNG",))
    except MaskError as error:
        raise ClickError(str(error)) from None
    except (ImageError, ValueError) as error:
        raise ClickError(f"the mask is no PNG in base64 of {width} x {height} pixels: {error}") from None
    if mask.shape != (height, width):
        raise ClickError(f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, not {width} x {height}")
    return mask


def _filled(digits: NDArray[np.uint8], pixels: int) -> Mask | None:
    """So many pixels, by run lengths of alternating value; None where these do not fill them.

    The runs are read piece by piece, as the arithmetic takes some 70 bytes a letter.
    """
    mask = np.zeros(pixels, np.bool_)
    filled = number = 0
    last = np.zeros(2, np.int64)
    while len(digits):
        ends = np.flatnonzero(digits[:_PIECE] < 32)
        if len(ends) == 0:
            return None
        counts = _numbers(digits[: ends[-1] + 1], ends)
        if counts is None:
            return None
        if number == 0:  # from the fourth on, a number is the difference to the run before the last
            counts[2:3] -= counts[:1]
        counts = np.concatenate([last, counts])
        for first in (0, 1):
            counts[first::2] = np.cumsum(counts[first::2])
        last, counts = counts[-2:], counts[2:]
        end = filled + int(counts.sum())
        if counts.min() < 0 or counts.max() > pixels or end > pixels:
            return None
        mask[filled:end] = np.repeat(np.arange(number, number + len(counts)) % 2 == 1, counts)
        filled, number, digits = end, number + len(counts), digits[ends[-1] + 1 :]
    return mask if filled == pixels else None


def _numbers(digits: NDArray[np.uint8], ends: NDArray[np.intp]) -> NDArray[np.int64] | None:
    """Signed numbers of base 32 with a continuation bit, by where they end; None where some are none."""
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if digits.max() > 63 or lengths.max() > 7:  # 35 bits: longer than any run
        return None
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 31).astype(np.int64) << (5 * place), starts)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    return values


def _png(grey: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(".png", grey)
    assert done
    return data.tobytes()
