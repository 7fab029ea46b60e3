"""Types of fields that protocols share, and from a tool's (x, y) to the clicks and boxes of the core."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from mst.clicks import Click
from mst.data.pixels.base64_text import from_base64
from mst.data.pixels.images import RGB
from mst.errors import ClickError
from mst.zoom import Box


class Wire(BaseModel):
    """What a tool sends; it may add keys that we do not know, as its next version will."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def image_bytes(text: Any) -> bytes:
    """Decode an image file in base64, as `mst.data.pixels.base64_text` reads it.

    Raises:
        ValueError: it is none.
    """
    try:
        return from_base64(text)
    except ValueError:
        raise ValueError("not an image file in base64") from None


ImageFile = Annotated[bytes, BeforeValidator(image_bytes)]
Point = tuple[float, float]
"""x and y in pixels."""


def click_at(x: float, y: float, is_positive: bool, image: RGB) -> Click:
    """Return the click on the pixel that holds (x, y); the far border belongs to the last pixel.

    Raises:
        ClickError: outside the image.
    """
    height, width = image.shape[:2]
    if not (0 <= x <= width and 0 <= y <= height):
        raise ClickError(f"a click at x {x:g}, y {y:g} lies outside the image of {width} x {height} pixels")
    return Click(min(math.floor(y), height - 1), min(math.floor(x), width - 1), is_positive)


def box_between(first: Point, second: Point, image: RGB) -> Box:
    """Return the pixels between two opposite corners, as far as they lie inside the image.

    Raises:
        ClickError: none of them does.
    """
    height, width = image.shape[:2]
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(first, second, strict=True))
    box = Box(
        top=math.floor(max(0, top)),
        left=math.floor(max(0, left)),
        bottom=math.ceil(min(height, bottom)),
        right=math.ceil(min(width, right)),
    )
    if box.height < 1 or box.width < 1:
        raise ClickError(f"the box {first} .. {second} has no pixel of the image of {width} x {height}")
    return box
