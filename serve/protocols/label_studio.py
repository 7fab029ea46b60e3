"""A machine learning backend of Label Studio: smart keypoints and rectangles in, a brush mask out.

Coordinates are percents of the image's sides. Images are given by their address in Label Studio, of which
only the configured one is asked (`serve.protocols.label_studio_images`), or as data URIs.
"""

import asyncio
import uuid
from functools import partial
from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from mst.clicks import Click
from mst.data.pixels.brush import brush_rle
from mst.data.pixels.images import RGB
from mst.errors import ClickError
from serve.errors import RequestError
from serve.protocols.failures import IN_ITS_FORM, route_that_says
from serve.protocols.label_studio_images import LabelStudioImages
from serve.protocols.wire import Wire, box_between, click_at
from serve.settings import ServeSettings
from serve.state.core import Core, Options, Segmentation, StoredImage, few_at_once
from serve.wire.models import ModelInfo
from serve.wire.schemas import MAX_CLICKS

_MARKS = ("keypointlabels", "rectanglelabels", "keypoint", "rectangle")

Percent = Annotated[float, Field(ge=0, le=100)]


class Region(Wire):
    """What an annotator marked; kinds of marks that mean nothing here have no fields that are read."""

    type: str
    value: dict[str, Any]
    is_positive: bool = True
    to_name: str | None = None
    """The image that it lies on."""


class Place(Wire):
    """Where a mark lies; a keypoint has no height that means anything."""

    x: Percent
    y: Percent
    width: Percent = 0
    height: Percent = 0
    rotation: float = 0


class Context(Wire):
    """The marks so far, in their order."""

    result: Annotated[list[Region], Field(max_length=MAX_CLICKS)]


class Parameters(Wire):
    """Of an interactive prediction; a batch prediction has no context."""

    context: Context | None = None


class Task(Wire):
    """One image; its address is under the key that the label config names."""

    data: dict[str, Any]


class Prediction(Wire):
    """A request for predictions."""

    tasks: Annotated[list[Task], Field(min_length=1, max_length=100)]
    label_config: Annotated[str, Field(max_length=1_000_000)]
    params: Parameters = Parameters()


class Target(NamedTuple):
    """One image of a label config, and the brush whose masks it takes."""

    to_name: str
    """The Image tag's name."""
    data_key: str
    """Under which a task has its address."""
    from_name: str
    """The BrushLabels tag's name."""
    labels: list[str]

    def label(self, regions: list[Region]) -> str:
        """The brush's label of the first positive mark; its first label where the marks have another."""
        names = [name for region in regions if region.is_positive for name in _labels(region)]
        return next((name for name in names if name in self.labels), (self.labels or ["Object"])[0])


class Tags:
    """The images and brushes of a label config.

    Args:
        label_config: the project's, in XML.

    Raises:
        RequestError: it is no XML, or lacks an Image.
    """

    def __init__(self, label_config: str) -> None:
        if "<!DOCTYPE" in label_config:  # the only way to entities, which can grow without bounds
            raise RequestError("label_config: a document type is not accepted")
        try:
            root = ElementTree.fromstring(label_config)
        except ElementTree.ParseError as error:
            raise RequestError(f"label_config: not XML ({error})") from None
        self._images = {tag.get("name", ""): tag for tag in root.iter("Image")}
        self._brushes = {tag.get("toName", ""): tag for tag in reversed(list(root.iter("BrushLabels")))}
        if not self._images:
            raise RequestError("label_config: needs an <Image> tag")

    def marked(self, regions: list[Region]) -> tuple[Target, list[Region]]:
        """Return the image that was marked last, and the marks on it.

        Where a task shows several images, marks on the others are of other objects.

        Raises:
            RequestError: the mark is on no Image of the label config, or on one without BrushLabels; or it
                does not say on which of several.
        """
        name = regions[-1].to_name
        if name is None and len(self._images) > 1:
            there = ", ".join(self._images)
            raise RequestError(f"a mark needs 'to_name', since label_config has the images {there}")
        name = next(iter(self._images)) if name is None else name
        target = self._target(name)
        return target, [each for each in regions if each.to_name in (None, name)]

    def _target(self, name: str) -> Target:
        image, brush = self._images.get(name), self._brushes.get(name)
        if image is None:
            there = ", ".join(self._images)
            raise RequestError(f"a mark is on '{name[:80]}', which is no <Image> of label_config: {there}")
        if brush is None:
            raise RequestError(f'label_config: needs <BrushLabels toName="{name}"> for the mask')
        data_key = image.get("value", "").removeprefix("$")
        labels = [each.get("value", "") for each in brush.iter("Label")]
        return Target(name, data_key, brush.get("name", ""), labels)


class Handlers:
    """What answers Label Studio.

    Args:
        core: images and predictions.
        images: where tasks' images come from.
    """

    def __init__(self, core: Core, images: LabelStudioImages) -> None:
        self._core, self._images = core, images

    async def health(self) -> dict[str, str]:
        """Answer as long as this process lives."""
        return {"status": "UP", "model_class": "MST"}

    async def setup(self) -> dict[str, str]:
        """Name the model; the project's address and token, which are sent here, are not used."""
        return {"model_version": _version(await self._core.model())}

    async def model_versions(self) -> dict[str, list[str]]:
        """List the models to choose from: the one that is served."""
        return {"versions": [_version(await self._core.model())]}

    async def event(self) -> dict[str, str]:
        """Take note of what happens in a project, which changes nothing here."""
        return {"status": "ok"}

    async def predict(self, body: Prediction) -> dict[str, Any]:
        """Return a brush mask for each task, or an empty prediction where nothing is marked."""
        tags = Tags(body.label_config)
        context = body.params.context.result if body.params.context else []
        regions = [each for each in context if each.type in _MARKS]
        if not regions:
            return {"results": [{"result": [], "score": 0.0} for _ in body.tasks]}
        target, marks = tags.marked(regions)
        results = await few_at_once(partial(self._predict, task, marks, target) for task in body.tasks)
        return {"results": results}

    async def _predict(self, task: Task, regions: list[Region], target: Target) -> dict[str, Any]:
        stored = await self._image(task, target)
        clicks, options = _prompt(regions, stored.pixels)
        if not (options.box or any(click.is_positive for click in clicks)):
            return {"result": [], "score": 0.0}  # a lone negative click, as auto-accept leaves it behind
        found = await self._core.segment(stored, clicks, options)
        region = await asyncio.to_thread(_region, found, target, target.label(regions))
        return {"result": [region], "model_version": _version(found.model), "score": found.score}

    async def _image(self, task: Task, target: Target) -> StoredImage:
        address = task.data.get(target.data_key)
        if not isinstance(address, str):
            raise RequestError(f"the task has no image under '{target.data_key}', which label_config names")
        return await self._core.add_image(await self._images.fetch(address))


def _prompt(regions: list[Region], image: RGB) -> tuple[list[Click], Options]:
    height, width = image.shape[:2]
    clicks, box = [], None
    for region in regions:
        place = Place.model_validate(region.value)
        x, y = place.x * width / 100, place.y * height / 100
        if region.type.startswith("keypoint"):
            clicks.append(click_at(x, y, region.is_positive, image))
        else:
            if place.rotation:
                raise ClickError("a rotated rectangle cannot say where the object is; draw it upright")
            corner = (x + place.width * width / 100, y + place.height * height / 100)
            box = box_between((x, y), corner, image)  # the last one counts
    return clicks, Options(box=box)


def _labels(region: Region) -> list[str]:
    named = region.value.get(region.type) or region.value.get("labels") or []
    return [str(name) for name in named] if isinstance(named, list) else []


def _region(found: Segmentation, target: Target, label: str) -> dict[str, Any]:
    height, width = found.mask.shape
    return {
        "id": uuid.uuid4().hex[:10],
        "from_name": target.from_name,
        "to_name": target.to_name,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "type": "brushlabels",
        "score": found.score,
        "readonly": False,
        "value": {"format": "rle", "rle": list(brush_rle(found.mask)), "brushlabels": [label]},
    }


def _version(model: ModelInfo) -> str:
    return f"{model.name}/{model.version}"


def _say(status: int, text: str) -> Response:
    return JSONResponse({"detail": text}, status_code=status)


def router(core: Core, settings: ServeSettings) -> APIRouter:
    """Return the routes that Label Studio calls."""
    images = LabelStudioImages(
        settings.label_studio_url, settings.token_of_label_studio(), settings.max_bytes
    )
    handlers = Handlers(core, images)
    routes = APIRouter(tags=["Label Studio"], route_class=route_that_says(_say), responses=IN_ITS_FORM)
    routes.add_api_route("/health", handlers.health, methods=["GET"])
    routes.add_api_route("/setup", handlers.setup, methods=["POST"])
    routes.add_api_route("/versions", handlers.model_versions, methods=["GET"])
    routes.add_api_route("/predict", handlers.predict, methods=["POST"])
    for path in ("webhook", "train", "validate", "delete", "duplicate_model", "job_status"):
        routes.add_api_route(
            f"/{path}", handlers.event, methods=["POST"], operation_id=f"label_studio_{path}"
        )
    return routes
