"""CVAT's gateway to Nuclio functions: the server stands where CVAT expects Nuclio's dashboard.

CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT name it; it lists one function, an interactor, and is invoked either
through the dashboard (POST /api/function_invocations) or directly at the function's port (POST /).
"""

import asyncio
from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field

from mst.clicks import Mask
from serve.errors import UnknownModelError
from serve.protocols.wire import ImageFile, Point, Wire, box_between, click_at
from serve.state.core import Core, Options
from serve.wire.encoding import json_rows
from serve.wire.outlines import polygons
from serve.wire.schemas import MAX_CLICKS

_NAME = "mst"
_TOLERANCE = 1.0  # pixels between a mask and its outline
_HELP = "Click on the object; right-click on what is not part of it. A box around it may come first."

Points = Annotated[list[Point], Field(max_length=MAX_CLICKS)]


class Invocation(Wire):
    """What CVAT sends to an interactor; it keeps the clicks' order among each kind alone."""

    image: ImageFile
    pos_points: Points
    neg_points: Points
    obj_bbox: Annotated[tuple[Point, Point] | None, BeforeValidator(lambda box: box or None)] = None
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None


class Handlers:
    """What answers CVAT.

    Args:
        core: images and predictions.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def functions(self, request: Request) -> dict[str, Any]:
        """List the functions by name."""
        return {_NAME: await self.function(_NAME, request)}

    async def function(self, name: str, request: Request) -> dict[str, Any]:
        """Describe a function; CVAT reads its numbers as text, and takes any text for true."""
        if name != _NAME:
            raise UnknownModelError(f"no function '{name}'; there is '{_NAME}'")
        model = await self._core.model()
        annotations = {
            "name": "MST",
            "type": "interactor",
            "version": "2",
            "spec": "",
            "min_pos_points": "1",
            "min_neg_points": "0",
            "startswith_box_optional": "true",
            "animated_gif": "",
            "help_message": _HELP,
        }
        return {
            "metadata": {"name": _NAME, "annotations": annotations},
            "spec": {"description": f"Click-based segmentation, {model.name} version {model.version}"},
            "status": {"state": "ready", "httpPort": request.url.port or 80},
        }

    async def invoke(self, body: Invocation) -> Response:
        """Return the whole mask as rows of 0 and 1, and the outline of its largest part."""
        stored = await self._core.add_image(body.image)
        image = stored.pixels
        clicks = [click_at(*point, True, image) for point in body.pos_points]
        clicks += [click_at(*point, False, image) for point in body.neg_points]
        box = box_between(*body.obj_bbox, image) if body.obj_bbox else None
        found = await self._core.segment(stored, clicks, Options(body.threshold, box))
        return Response(await asyncio.to_thread(_reply, found.mask), media_type="application/json")


def _reply(mask: Mask) -> bytes:
    outlines = [np.array(part.outer, np.float32) for part in polygons(mask, _TOLERANCE)]
    largest = max(outlines, key=cv2.contourArea, default=np.empty((0, 2)))
    points = b",".join(b"[%g,%g]" % (x, y) for x, y in largest.tolist())
    return b'{"mask":' + json_rows(mask) + b',"points":[' + points + b"]}"


def router(core: Core) -> APIRouter:
    """Return the routes that CVAT calls."""
    handlers, routes = Handlers(core), APIRouter(tags=["CVAT"])
    routes.add_api_route("/api/functions", handlers.functions, methods=["GET"])
    routes.add_api_route("/api/functions/{name}", handlers.function, methods=["GET"])
    routes.add_api_route("/api/function_invocations", handlers.invoke, methods=["POST"])
    routes.add_api_route("/", handlers.invoke, methods=["POST"], include_in_schema=False)
    return routes
