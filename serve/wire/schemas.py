"""What requests and replies hold; coordinates are (x, y) in pixels, from the image's top left."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.wire.models import ModelInfo, Rejected

MAX_CLICKS = 200
MAX_OBJECTS = 32

MaskFormat = Literal["rle", "png", "polygons"]
Coordinate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Corner = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RLE(_Schema):
    """COCO's compressed run-length encoding."""

    size: tuple[int, int]
    """Height and width."""
    counts: str


class Polygon(_Schema):
    """One part of a mask."""

    outer: list[tuple[float, float]]
    holes: list[list[tuple[float, float]]]


class ClickIn(_Schema):
    """A click on pixel (floor(x), floor(y))."""

    x: Coordinate
    y: Coordinate
    is_positive: bool = True


class MaskRequest(_Schema):
    """One object: the whole list of clicks on it, in the order in which they were made."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    clicks: Annotated[list[ClickIn], Field(max_length=MAX_CLICKS)] = []
    """At least one; with neither box nor prior mask at least one positive one."""
    box: tuple[Corner, Corner, Corner, Corner] | None = None
    """Left, top, right and bottom, half-open: a box around the object, before the clicks."""
    prior: RLE | str | None = None
    """A mask that the clicks correct, as RLE or as a PNG in base64, which docs/data.md says how to read."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability above which a pixel belongs to the mask; the model's own where it is not given."""
    format: MaskFormat = "rle"
    crop: bool = False
    """Whether a PNG holds the mask inside the reply's `box` alone, empty text where there is none."""
    tolerance: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Pixels by which polygons may leave the true outline; 0 keeps every corner."""
    min_area: Annotated[float, Field(ge=0, le=1e9)] = 8.0
    """Parts and holes of fewer pixels are no polygons."""
    probabilities: bool = False
    """Whether the reply has the probabilities, as a PNG."""
    tokens: bool = False
    """Whether the reply has the tokens that guided the last click."""
    first_look: bool = False
    """Whether the first look at the last click is enough, where the model takes a closer one too. The same
    request without it, sent right after or at once, has the answer: they share their work."""

    @model_validator(mode="after")
    def _only_pictures_are_cropped(self) -> Self:
        if self.crop and self.format != "png":
            raise ValueError(f"crop is for the format png, not {self.format}")
        return self


class SegmentRequest(MaskRequest):
    """An image and the clicks on it in one call."""

    image: Annotated[str, Field(description="the image file, base64")]


class ObjectsRequest(_Schema):
    """Several objects of one image."""

    objects: Annotated[list[MaskRequest], Field(min_length=1, max_length=MAX_OBJECTS)]


class ImageInfo(_Schema):
    """An image that was stored."""

    image_id: str
    width: int
    height: int
    keeps_annotations: bool = False
    """Whether the server keeps masks that are accepted."""
    adapts: bool = False
    """Whether it adapts the model to them when it is asked to."""


class AnnotationRequest(_Schema):
    """A mask that an annotator accepts."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    label: Annotated[str, Field(min_length=1, max_length=200)]
    mask: RLE | str
    """As RLE, or as a PNG in base64, which docs/data.md says how to read."""
    clicks: Annotated[list[ClickIn], Field(max_length=MAX_CLICKS)] = []
    """That made it."""
    box: tuple[Corner, Corner, Corner, Corner] | None = None
    """That came before the clicks."""
    model: ModelInfo | None = None
    """That made it, as the reply with the mask says."""
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of that reply."""


class AnnotationInfo(_Schema):
    """An annotation that is kept."""

    annotation_id: str


class Annotation(AnnotationRequest):
    """An annotation as it is kept."""

    id: str
    image_id: str
    mask: RLE
    author: str
    """A digest of the key that sent it; empty where the server has no keys."""
    at: str
    """When, as ISO 8601 in UTC."""
    area: int
    """In pixels."""
    bbox: tuple[float, float, float, float]
    """COCO's left, top, width and height."""


class AdaptationReply(_Schema):
    """The last adaptation of the champion to accepted masks."""

    state: Literal["none", "running", "promoted", "not promoted", "failed"]
    name: str
    """Of the run; empty where there is none."""
    lines: list[str]
    """The last ones that it printed: progress, and at the end what it is worth."""


class AnnotationsReply(_Schema):
    """What is kept of an image."""

    annotations: list[Annotation]


class Timing(_Schema):
    """Where the time went, in milliseconds."""

    model: float
    """Waiting for the model, and the model's forward: 0 where the prediction was known already."""
    forward: float
    """The forward alone."""
    total: float
    """From the request's arrival to the reply."""


class TokensOut(_Schema):
    """The tokens that one fusion module chose for the last click."""

    patch_size: int
    """Side of a token in pixels of the network's input."""
    boxes: list[tuple[int, int, int, int]]
    """Left, top, right and bottom of each token in the image, half-open; the most similar first."""
    scores: list[float]
    """Similarity to the clicked tokens, one for each box."""


class MaskReply(_Schema):
    """A mask."""

    mask: RLE | str | list[Polygon]
    """In the format that was asked for: RLE, base64 of a PNG (of the box alone with `crop`), or polygons."""
    box: tuple[int, int, int, int] | None
    """Left, top, right and bottom, half-open; null for an empty mask."""
    score: float
    """The IoU that the mask would have, were the model's probabilities right: 0 .. 1."""
    model: ModelInfo
    timing_ms: Timing
    is_final: bool = True
    """False for a first look, where the model takes a closer one too: `first_look` of the request."""
    probabilities: str | None = None
    """A grey PNG in base64, 255 times each pixel's probability."""
    tokens: list[TokensOut] | None = None


class ObjectsReply(_Schema):
    """A mask for each object, in the order of the request."""

    masks: list[MaskReply]


class Ready(ModelInfo):
    """Which model is served, and which one is not though its alias names it."""

    rejected: Rejected | None = None
