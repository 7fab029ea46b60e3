"""X-AnyLabeling's remote server: marks on an image in, polygons out.

The tool reads no `"success": false` in a reply of 200, as its own server sends it, and would show nothing;
an error has its true status here, which the tool does show.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB
from mst.errors import ClickError
from serve.errors import UnknownModelError
from serve.protocols.failures import IN_ITS_FORM, route_that_says
from serve.protocols.wire import ImageFile, Wire, box_between, click_at
from serve.state.core import Core, Options
from serve.wire.outlines import polygons
from serve.wire.schemas import MAX_CLICKS

_MODEL = "mst"
_TOLERANCE, _MIN_AREA = 1.0, 8.0  # pixels between a mask and its outline; of a part that is left out
_BUTTONS = (
    "button_add_point",
    "button_remove_point",
    "button_add_rect",
    "button_clear",
    "button_finish_object",
)


class Mark(Wire):
    """A click or a box."""

    type: Literal["point", "rectangle"]
    data: tuple[float, float] | tuple[float, float, float, float]
    """x, y of a point; x1, y1, x2, y2 of a rectangle."""
    label: Literal[0, 1] = 1


class Parameters(Wire):
    """What the tool's user sets; thresholds of detectors, which it sends as well, mean nothing here."""

    marks: Annotated[tuple[Mark, ...], Field(max_length=MAX_CLICKS)] = ()


class Prediction(Wire):
    """A request for shapes."""

    model: str
    image: ImageFile
    params: Parameters = Parameters()


class Handlers:
    """What answers X-AnyLabeling.

    Args:
        core: images and predictions.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def models(self) -> dict[str, Any]:
        """List the models by id."""
        return {"success": True, "data": {_MODEL: await self._describe()}}

    async def model(self, name: str) -> dict[str, Any]:
        """Describe a model."""
        _check(name)
        return {"success": True, "data": await self._describe()}

    async def predict(self, body: Prediction) -> dict[str, Any]:
        """Return the object that the marks mean, a polygon for each of its parts; none without marks."""
        _check(body.model)
        stored = await self._core.add_image(body.image)
        clicks, options = _prompt(body.params.marks, stored.pixels)
        shapes: list[dict[str, Any]] = []
        if clicks or options.box:
            found = await self._core.segment(stored, clicks, options)
            shapes = await asyncio.to_thread(_shapes, found.mask, found.score)
        return {"success": True, "data": {"shapes": shapes, "description": "", "replace": False}}

    async def _describe(self) -> dict[str, Any]:
        model = await self._core.model()
        return {
            "display_name": f"MST ({model.name} version {model.version})",
            "batch_processing_mode": None,
            "params": {},
            "widgets": [{"name": name, "value": None} for name in _BUTTONS],
        }


def _check(name: str) -> None:
    if name != _MODEL:
        raise UnknownModelError(f"no model '{name}'; there is '{_MODEL}'")


def _prompt(marks: Sequence[Mark], image: RGB) -> tuple[list[Click], Options]:
    clicks, box = [], None
    for mark in marks:
        if mark.type == "point" and len(mark.data) == 2:
            clicks.append(click_at(*mark.data, mark.label == 1, image))
        elif mark.type == "rectangle" and len(mark.data) == 4:
            box = box_between(mark.data[:2], mark.data[2:], image)  # the last one counts
        else:
            raise ClickError(f"a {mark.type} with {len(mark.data)} coordinates; a point has 2, a rectangle 4")
    return clicks, Options(box=box)


def _shapes(mask: Mask, score: float) -> list[dict[str, Any]]:
    """Closed outlines; the tool's polygons have no holes."""
    return [
        {
            "label": "AUTOLABEL_OBJECT",
            "shape_type": "polygon",
            "points": [*part.outer, part.outer[0]],
            "score": score,
        }
        for part in polygons(mask, _TOLERANCE, _MIN_AREA)
    ]


def _say(status: int, text: str) -> Response:
    error = {"code": str(status), "message": text}
    return JSONResponse({"success": False, "error": error}, status_code=status)


def router(core: Core) -> APIRouter:
    """Return the routes that X-AnyLabeling calls, but for /health, which `label_studio` answers."""
    handlers = Handlers(core)
    routes = APIRouter(tags=["X-AnyLabeling"], route_class=route_that_says(_say), responses=IN_ITS_FORM)
    routes.add_api_route("/v1/models", handlers.models, methods=["GET"])
    routes.add_api_route("/v1/models/{name}/info", handlers.model, methods=["GET"])
    routes.add_api_route("/v1/predict", handlers.predict, methods=["POST"])
    return routes
