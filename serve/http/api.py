"""The HTTP interface: checks what comes in, asks the core, encodes what goes out."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from mst import __version__
from mst.clicks import Click, Mask
from mst.data.pixels.base64_text import from_base64
from mst.data.pixels.images import RGB
from mst.errors import ClickError, MSTError
from mst.zoom import Box
from serve.errors import OverloadedError, UnfinishedError, is_away, message_of, status_of
from serve.http.adapting import add_adapting
from serve.http.annotations import add_annotations
from serve.http.gate import Door, Gate
from serve.http.keys import Keys
from serve.protocols import routers
from serve.settings import ServeSettings
from serve.state.core import Core, Options, Segmentation, StoredImage, few_at_once
from serve.wire.encoding import decode_png, decode_rle, encode, png, probability_png, text
from serve.wire.limits import PAGE, PROBE, Limits, limited
from serve.wire.schemas import (
    RLE,
    ClickIn,
    ImageInfo,
    MaskReply,
    MaskRequest,
    ObjectsReply,
    ObjectsRequest,
    Polygon,
    Ready,
    SegmentRequest,
    Timing,
    TokensOut,
)

_TITLE = "MST: click-based interactive segmentation"
_WEB = Path(__file__).parent.parent / "web"
_IMAGE_BODY = {"requestBody": {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}
_PAGE_HEADERS = {  # it needs nothing from elsewhere, and nobody may put it into a page of his own
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; "
    "object-src 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}

Alias = Annotated[str | None, Header(alias="X-Model-Alias", max_length=100)]
Where = tuple[str | int, ...]


class Handlers:
    """What answers the requests.

    Args:
        core: images and predictions.
        door: what is in hand.
    """

    def __init__(self, core: Core, door: Door) -> None:
        self._core, self._door = core, door

    @limited(PAGE)
    async def page(self) -> FileResponse:
        """Return the page on which a person clicks."""
        return FileResponse(_WEB / "index.html", headers=_PAGE_HEADERS)

    @limited(PAGE)
    async def icon(self) -> FileResponse:
        """Return the page's icon."""
        return FileResponse(_WEB / "icon.svg", media_type="image/svg+xml")

    async def docs(self) -> HTMLResponse:
        """Return the page that describes the interface; its addresses are relative to it."""
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=_TITLE,
            swagger_js_url="docs/files/swagger-ui-bundle.js",
            swagger_css_url="docs/files/swagger-ui.css",
            swagger_favicon_url="favicon.ico",
        )

    @limited(PROBE)
    async def health(self) -> dict[str, str]:
        """Answer as long as this process lives."""
        return {"status": "ok"}

    @limited(PROBE)
    async def ready(self) -> Ready:
        """Answer which model is served, once it can answer clicks, and which new version cannot be."""
        if self._door.is_closed:
            raise HTTPException(503, "the server is about to stop")
        try:
            info, rejected = await self._core.ready()
        except (RayServeException, RayError, MSTError) as error:
            raise HTTPException(503, "the model is not loaded") from error
        return Ready(**info.model_dump(), rejected=rejected)

    @limited(Limits(is_light=True))
    async def metrics(self) -> Response:
        """Return counts and times for Prometheus."""
        return Response(self._core.metrics_text(), media_type=CONTENT_TYPE_LATEST)

    @limited(Limits(body="image"))
    async def put_image(self, request: Request) -> ImageInfo:
        """Store an image, the body of the request; the same image always has the same id."""
        stored = await self._core.add_image(await request.body())
        height, width = stored.pixels.shape[:2]
        return ImageInfo(
            image_id=stored.image_id,
            width=width,
            height=height,
            keeps_annotations=self._core.keeps_annotations,
            adapts=self._core.adapts,
        )

    async def mask_of_image(self, image_id: str, body: MaskRequest, alias: Alias = None) -> MaskReply:
        """Return the mask of the object that the clicks mean, on a stored image."""
        start = time.perf_counter()
        return await self._mask(await self._core.image(image_id), body, alias, start)

    async def masks_of_image(self, image_id: str, body: ObjectsRequest, alias: Alias = None) -> ObjectsReply:
        """Return the masks of several objects of a stored image."""
        start = time.perf_counter()
        stored = await self._core.image(image_id)
        masks = [
            partial(self._mask, stored, each, alias, start, ("objects", number))
            for number, each in enumerate(body.objects)
        ]
        return ObjectsReply(masks=await few_at_once(masks))

    async def segment(self, body: SegmentRequest, alias: Alias = None) -> MaskReply:
        """Return the mask of the object that the clicks mean, on the image in the request."""
        start = time.perf_counter()
        try:
            data = from_base64(body.image)
        except ValueError as error:
            raise _invalid("image", str(error)) from None
        return await self._mask(await self._core.add_image(data), body, alias, start)

    async def _mask(
        self, stored: StoredImage, body: MaskRequest, alias: str | None, start: float, where: Where = ()
    ) -> MaskReply:
        clicks = _clicks_on(stored.pixels, body, where)
        prior = (
            await asyncio.to_thread(_prior, stored.pixels, body, where) if body.prior is not None else None
        )
        box = Box(body.box[1], body.box[0], body.box[3], body.box[2]) if body.box else None
        options = Options(body.threshold, box, prior, alias, body.tokens, body.first_look)
        found = await self._core.segment(stored, clicks, options)
        with self._core.metrics.stage("encode"):
            return await asyncio.to_thread(_reply, found, body, start)


def build_api(core: Core, settings: ServeSettings, keys: Keys, door: Door | None = None) -> FastAPI:
    """Route requests to their handlers.

    Args:
        core: what answers.
        settings: of the server.
        keys: who may ask.
        door: what is in hand; its own if not given.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        keeper = asyncio.create_task(core.keep())
        yield
        keeper.cancel()

    door = door or Door()
    handlers = Handlers(core, door)
    app = FastAPI(
        title=_TITLE,
        version=__version__,
        description="Store an image, send the list of clicks on an object, get its mask.",
        lifespan=lifespan,
        root_path=settings.root_path,
        docs_url=None,  # its page would ask for the description at the root of the host
        redoc_url=None,
        servers=[{"url": "."}],  # beside the description, below whatever prefix a proxy shows it
        root_path_in_servers=False,
    )
    get, post = partial(app.add_api_route, methods=["GET"]), partial(app.add_api_route, methods=["POST"])
    get("/", handlers.page, include_in_schema=False)
    get("/favicon.ico", handlers.icon, include_in_schema=False)
    get("/docs", handlers.docs, include_in_schema=False)
    get("/metrics", handlers.metrics, include_in_schema=False)
    get("/healthz", handlers.health)
    get("/readyz", handlers.ready, responses={503: {"description": "the model is not loaded"}})
    post("/v1/images", handlers.put_image, status_code=201, openapi_extra=_IMAGE_BODY)
    post("/v1/images/{image_id}/mask", handlers.mask_of_image)
    post("/v1/images/{image_id}/masks", handlers.masks_of_image)
    post("/v1/segment", handlers.segment)
    add_annotations(app, core, keys)
    if core.adapts:
        add_adapting(app, settings)
    app.mount("/docs/files", limited(PAGE)(StaticFiles(packages=[("fastapi_offline", "static")])))
    app.mount("/web", limited(PAGE)(StaticFiles(directory=_WEB)), name="web")
    protocols = routers(core, settings)
    routes = [*app.routes, *(route for router in protocols for route in router.routes)]
    for router in protocols:
        app.include_router(router)
    app.add_exception_handler(RequestValidationError, _explain_invalid)
    app.add_exception_handler(MSTError, _explain)
    for of_ray in (RayError, RayServeException):
        app.add_exception_handler(of_ray, _explain_ray)
    app.add_middleware(
        Gate, settings=settings, keys=keys, metrics=core.metrics, door=door, room=core.room, routes=routes
    )
    return app


async def _explain_invalid(request: Request, error: Exception) -> JSONResponse:
    """Name each wrong field; the input itself is left out, as it may not even be JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    detail = [{"loc": each["loc"], "msg": each["msg"], "type": each["type"]} for each in error.errors()]
    kind = request.headers.get("content-type", "")
    if detail[0]["loc"] == ("body",) and "json" not in kind:
        detail = _wrong_body(f"the content type must be application/json, not '{kind[:80]}'")
    return JSONResponse({"detail": detail}, status_code=422)


async def _explain(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of ours with its status and its message."""
    assert isinstance(error, MSTError)
    status = status_of(error)
    headers = {"Retry-After": str(getattr(error, "retry_after", 1))} if status == 503 else None
    message = message_of(error)
    # In FastAPI's own form where the body is wrong, as the interface's description has it.
    content: dict[str, Any] = {"detail": _wrong_body(message) if status == 422 else message}
    if isinstance(error, UnfinishedError):
        content["clicks_done"] = error.clicks_done
    return JSONResponse(content, status_code=status, headers=headers)


async def _explain_ray(request: Request, error: Exception) -> JSONResponse:
    """Answer 503 where no replica of the model is there to be asked; an error of ours came through Ray."""
    if isinstance(error, MSTError):
        return await _explain(request, error)
    if is_away(error):
        return await _explain(request, OverloadedError("the model is not there"))
    raise error


def _clicks_on(image: RGB, body: MaskRequest, where: Where) -> list[Click]:
    """The clicks in (row, col), or a 422 that names the first wrong field."""
    height, width = image.shape[:2]
    for number, click in enumerate(body.clicks):
        for field, value, limit in (("x", click.x, width), ("y", click.y, height)):
            if value >= limit:
                why = f"outside the image, which is {width} x {height} pixels"
                raise _invalid(*where, "clicks", number, field, why)
    if body.box is None and not body.clicks:
        raise _invalid(*where, "clicks", "at least one click, or a box, must say where the object is")
    if body.box is None and body.prior is None and not any(click.is_positive for click in body.clicks):
        raise _invalid(*where, "clicks", "at least one click must be positive, to say where the object is")
    if body.box and not (body.box[0] < body.box[2] <= width and body.box[1] < body.box[3] <= height):
        raise _invalid(*where, "box", f"not left < right <= {width} and top < bottom <= {height}")
    return _floored(body.clicks)


def _floored(clicks: Sequence[ClickIn]) -> list[Click]:
    return [Click(math.floor(click.y), math.floor(click.x), click.is_positive) for click in clicks]


def _prior(image: RGB, body: MaskRequest, where: Where) -> Mask:
    """The mask to correct, or a 422 that says what is wrong with it."""
    try:
        decode = decode_rle if isinstance(body.prior, RLE) else decode_png
        return decode(body.prior, *image.shape[:2])  # type: ignore[arg-type]
    except ClickError as error:
        raise _invalid(*where, "prior", str(error)) from None


def _reply(found: Segmentation, body: MaskRequest, start: float) -> MaskReply:
    box = found.box
    if body.crop:
        mask: RLE | str | list[Polygon] = text(png(found.mask[box.slices()])) if box else ""
    else:
        mask = encode(found.mask, body.format, body.tolerance, body.min_area)
    tokens = [
        TokensOut(
            patch_size=each.patch_size, boxes=[_corners(box) for box in each.boxes], scores=[*each.scores]
        )
        for each in found.tokens
    ]
    return MaskReply(
        mask=mask,
        box=_corners(box) if box else None,
        score=found.score,
        model=found.model,
        is_final=found.is_final,
        probabilities=text(probability_png(found.prediction.probabilities)) if body.probabilities else None,
        tokens=tokens if body.tokens else None,
        timing_ms=Timing(
            model=round(1000 * found.model_seconds, 2),
            forward=round(1000 * found.forward_seconds, 2),
            total=round(1000 * (time.perf_counter() - start), 2),
        ),
    )


def _corners(box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    return box.left, box.top, box.right, box.bottom


def _invalid(*where_and_why: Any) -> HTTPException:
    """A 422 in the form of FastAPI's own."""
    return HTTPException(422, _wrong_body(*where_and_why))


def _wrong_body(*where_and_why: Any) -> list[dict[str, Any]]:
    *where, why = where_and_why
    return [{"loc": ["body", *where], "msg": why, "type": "value_error"}]
