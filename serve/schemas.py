"""What requests and replies hold; coordinates are (x, y) in pixels, from the image's top left."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.registry import ModelInfo

MAX_CLICKS = 200

MaskFormat = Literal["rle", "png", "polygons"]
Coordinate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClickIn(_Schema):
    """A click on pixel (floor(x), floor(y))."""

    x: Coordinate
    y: Coordinate
    is_positive: bool = True


class MaskRequest(_Schema):
    """The whole list of clicks on one object, in the order in which they were made."""

    clicks: Annotated[list[ClickIn], Field(min_length=1, max_length=MAX_CLICKS)]
    format: MaskFormat = "rle"


class SegmentRequest(MaskRequest):
    """An image and the clicks on it in one call."""

    image: Annotated[str, Field(description="the image file, base64")]


class ImageInfo(_Schema):
    """An image that was stored."""

    image_id: str
    width: int
    height: int


class RLE(_Schema):
    """COCO's compressed run-length encoding."""

    size: tuple[int, int]
    """Height and width."""
    counts: str


class Polygon(_Schema):
    """One part of a mask."""

    outer: list[tuple[float, float]]
    holes: list[list[tuple[float, float]]]


class Timing(_Schema):
    """Where the time went, in milliseconds."""

    model: float
    """Waiting for the model, and the model's forward: 0 where the prediction was known already."""
    total: float
    """From the request's arrival to the reply."""


class MaskReply(_Schema):
    """A mask."""

    mask: RLE | str | list[Polygon]
    """In the format that was asked for: RLE, base64 of a PNG, or polygons."""
    score: float
    """The IoU that the mask would have, were the model's probabilities right: 0 .. 1."""
    model: ModelInfo
    timing_ms: Timing
