"""What the client sends, and what it makes of the answers: both are checked before anyone relies on them."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mst.clicks import Click, Mask, as_clicks, check_clicks
from mst.data.pixels.arrays import AnyImage, as_image, as_mask, read_bytes
from mst.data.pixels.encode import decode_rle, encode_rle
from mst.data.pixels.images import encode_image, header_of
from mst.errors import ClickError, ImageError, ServerError
from mst.zoom import Box


@dataclass(frozen=True)
class Segmentation:
    """The server's answer to a list of clicks."""

    mask: Mask
    """(H, W)."""
    score: float
    """The IoU that the model expects of the mask, 0 .. 1."""
    model: str
    """Name and version of the model that made it."""


class ImageFile(NamedTuple):
    """An image as it is sent."""

    data: bytes
    shape: tuple[int, int] | None
    """H and W of its upright pixels; None where only the server can tell, if anyone can."""


def to_file(image: AnyImage) -> ImageFile:
    """Return an image as a file; one that is a file already is sent as it is.

    Raises:
        ImageError: it has no one meaning, or cannot be read.
    """
    if isinstance(image, bytes):
        return ImageFile(image, _shape_of(image))
    if isinstance(image, str | os.PathLike):
        data = read_bytes(image)
        return ImageFile(data, _shape_of(data))
    pixels = as_image(image)
    return ImageFile(encode_image(pixels, ".png"), pixels.shape[:2])


def _shape_of(data: bytes) -> tuple[int, int] | None:
    try:
        header = header_of(data, "image")
    except ImageError:  # the server says what is wrong with it
        return None
    return header.height, header.width


def to_request(
    clicks: Sequence[Click], box: Box | None, prior: Mask | None, shape: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the JSON that asks for a mask.

    Args:
        clicks: all clicks on the object.
        box: around it.
        prior: (H, W), a mask that the clicks correct.
        shape: H and W of the image, where they are known.

    Raises:
        ClickError: the clicks are none, or outside the image, or the box is none.
        MaskError: the mask is none, or of another size.
    """
    plain = as_clicks(clicks)
    if shape is not None:
        check_clicks(plain, *shape, needs_positive=box is None and prior is None)
    sent = [{"x": click.col, "y": click.row, "is_positive": click.is_positive} for click in plain]
    request: dict[str, Any] = {"clicks": sent, "format": "rle"}
    if box is not None:
        request["box"] = _corners(box)
    if prior is not None:
        prior = as_mask(prior, shape)
        request["prior"] = {"size": prior.shape, "counts": encode_rle(prior).decode()}
    return request


def _corners(box: Box) -> list[int]:
    if not isinstance(box, Box):
        raise ClickError(f"{box!r} is no Box, as in Box(top=10, left=20, bottom=60, right=90)")
    corners = [box.left, box.top, box.right, box.bottom]
    if not all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in corners):
        raise ClickError(f"the box {tuple(box)} has other values than whole numbers of pixels")
    return [int(each) for each in corners]


def to_segmentation(answer: dict[str, Any], shape: tuple[int, int] | None = None) -> Segmentation:
    """Read the server's answer to clicks on an image of H and W pixels, where these are known.

    Raises:
        ServerError: it is no mask of this image.
    """
    try:
        mask = decode_rle(answer["mask"]["counts"], *answer["mask"]["size"])
        score, model = answer["score"], f"{answer['model']['name']}/{answer['model']['version']}"
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"the server's answer is no mask ({error!r})") from None
    if shape is not None and mask.shape != shape:
        raise ServerError(f"the server's answer is a mask of {mask.shape}, the image has {shape}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ServerError(f"the server's answer has the score {score!r}, which is no number")
    return Segmentation(mask, score, model)
