"""The HTTP interface: checks what comes in, asks the segmenter, encodes what goes out."""

import asyncio
import base64
import binascii
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from mst import __version__
from mst.clicks import Click
from mst.data.images import RGB
from mst.errors import ImageError, ImageTooLargeError
from serve.encoding import encode
from serve.limits import LimitBody
from serve.registry import ModelInfo
from serve.schemas import ClickIn, ImageInfo, MaskReply, MaskRequest, SegmentRequest, Timing
from serve.segmenter import Description
from serve.session import Sessions

_WEB = Path(__file__).parent / "web"
_IMAGE_BODY = {"requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}

Describe = Callable[[], Awaitable[Description]]


class Handlers:
    """What answers the requests.

    Args:
        sessions: images and predictions.
        describe: asks the segmenter which model it holds.
    """

    def __init__(self, sessions: Sessions, describe: Describe) -> None:
        self._sessions, self._ask = sessions, describe
        self._model: Description | None = None

    async def page(self) -> FileResponse:
        """Return the page on which a person clicks."""
        return FileResponse(_WEB / "index.html")

    async def icon(self) -> FileResponse:
        """Return the page's icon."""
        return FileResponse(_WEB / "icon.svg", media_type="image/svg+xml")

    async def health(self) -> dict[str, str]:
        """Answer as long as this process lives."""
        return {"status": "ok"}

    async def ready(self) -> ModelInfo:
        """Answer which model is served, once it can answer clicks."""
        try:
            return (await asyncio.wait_for(self._ask(), timeout=2)).info  # asked anew: it may have died
        except (TimeoutError, RayServeException, RayError) as error:
            raise HTTPException(503, "the model is not loaded") from error

    async def put_image(self, request: Request) -> ImageInfo:
        """Store an image, the body of the request; the same image always has the same id."""
        image_id, image = await self._sessions.add_image(await request.body())
        return ImageInfo(image_id=image_id, width=image.shape[1], height=image.shape[0])

    async def mask_of_image(self, image_id: str, body: MaskRequest) -> MaskReply:
        """Return the mask of the object that the clicks mean, on a stored image."""
        start = time.perf_counter()
        image = await self._sessions.image(image_id)
        if image is None:
            raise HTTPException(404, f"no image '{image_id}'; store it with POST /v1/images")
        return await self._mask(image_id, image, body, start)

    async def segment(self, body: SegmentRequest) -> MaskReply:
        """Return the mask of the object that the clicks mean, on the image in the request."""
        start = time.perf_counter()
        try:
            data = base64.b64decode(body.image, validate=True)
        except binascii.Error:
            raise _invalid("image", "not base64") from None
        image_id, image = await self._sessions.add_image(data)
        return await self._mask(image_id, image, body, start)

    async def _mask(self, image_id: str, image: RGB, body: MaskRequest, start: float) -> MaskReply:
        clicks = _clicks_on(image, body.clicks)
        model = await self._describe()
        prediction, seconds = await self._sessions.predict(image_id, image, clicks, model)
        threshold = model.eval.threshold
        mask = await asyncio.to_thread(encode, prediction.mask(threshold), body.format)
        total = time.perf_counter() - start
        return MaskReply(
            mask=mask,
            score=prediction.score(threshold),
            model=model.info,
            timing_ms=Timing(model=round(1000 * seconds, 2), total=round(1000 * total, 2)),
        )

    async def _describe(self) -> Description:
        if self._model is None:
            self._model = await self._ask()
        return self._model


def build_api(handlers: Handlers, max_bytes: int) -> FastAPI:
    """Route requests to their handlers.

    Args:
        handlers: what answers.
        max_bytes: of a request's body.
    """
    app = FastAPI(
        title="MST: click-based interactive segmentation",
        version=__version__,
        description="Store an image, send the list of clicks on an object, get its mask.",
    )
    get, post = partial(app.add_api_route, methods=["GET"]), partial(app.add_api_route, methods=["POST"])
    get("/", handlers.page, include_in_schema=False)
    get("/favicon.ico", handlers.icon, include_in_schema=False)
    get("/healthz", handlers.health)
    get("/readyz", handlers.ready, responses={503: {"description": "the model is not loaded"}})
    post("/v1/images", handlers.put_image, status_code=201, openapi_extra=_IMAGE_BODY)
    post("/v1/images/{image_id}/mask", handlers.mask_of_image)
    post("/v1/segment", handlers.segment)
    app.mount("/web", StaticFiles(directory=_WEB), name="web")
    app.add_exception_handler(RequestValidationError, _explain_invalid)
    app.add_exception_handler(ImageError, _explain_image)
    app.add_middleware(LimitBody, max_bytes=max_bytes)
    return app


async def _explain_invalid(request: Request, error: Exception) -> JSONResponse:
    """Name each wrong field; the input itself is left out, as it may not even be JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    detail = [{"loc": each["loc"], "msg": each["msg"], "type": each["type"]} for each in error.errors()]
    return JSONResponse({"detail": detail}, status_code=422)


async def _explain_image(request: Request, error: Exception) -> JSONResponse:
    """Answer 413 to an image that is too large, 415 to what is no image."""
    status = 413 if isinstance(error, ImageTooLargeError) else 415
    return JSONResponse({"detail": str(error)}, status_code=status)


def _clicks_on(image: RGB, clicks: Sequence[ClickIn]) -> list[Click]:
    """The clicks in (row, col), or a 422 that names the first wrong field."""
    height, width = image.shape[:2]
    for number, click in enumerate(clicks):
        for field, value, limit in (("x", click.x, width), ("y", click.y, height)):
            if value >= limit:
                raise _invalid(
                    "clicks", number, field, f"outside the image, which is {width} x {height} pixels"
                )
    if not any(click.is_positive for click in clicks):
        raise _invalid("clicks", "at least one click must be positive, to say where the object is")
    return [Click(math.floor(click.y), math.floor(click.x), click.is_positive) for click in clicks]


def _invalid(*where_and_why: Any) -> HTTPException:
    """A 422 in the form of FastAPI's own."""
    *where, why = where_and_why
    return HTTPException(422, [{"loc": ["body", *where], "msg": why, "type": "value_error"}])
