"""The routes of accepted masks: keep one, list them, delete one, export all as COCO."""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request, Response
from fastapi.responses import JSONResponse

from mst.clicks import Mask
from mst.errors import ClickError
from serve.errors import NotKeptError
from serve.http.keys import Keys
from serve.state.annotations import coco, measured
from serve.state.core import Core
from serve.wire.encoding import decode_png, decode_rle
from serve.wire.schemas import RLE, Annotation, AnnotationInfo, AnnotationRequest, AnnotationsReply

Id = Annotated[str, Path(max_length=64)]


class AnnotationHandlers:
    """What answers these requests.

    Args:
        core: that keeps them.
        keys: who may ask; an annotation's author is a digest of one.
    """

    def __init__(self, core: Core, keys: Keys) -> None:
        self._core, self._keys = core, keys

    async def accept(self, image_id: Id, body: AnnotationRequest, request: Request) -> AnnotationInfo:
        """Keep a mask that an annotator accepts, with its image; the same one twice is kept once."""
        kept = self._core.annotations()  # where there are none, nothing is read
        stored = await self._core.image(image_id)
        data, suffix = await self._core.image_file(image_id)
        mask = await asyncio.to_thread(_mask, body, *stored.pixels.shape[:2])
        document = {
            "image_id": image_id,
            **body.model_dump(mode="json"),
            **await asyncio.to_thread(measured, mask),
            "author": self._keys.author(dict(request.scope["headers"])),
        }
        return AnnotationInfo(annotation_id=await asyncio.to_thread(kept.put, data, suffix, document))

    async def list_of_image(self, image_id: Id) -> AnnotationsReply:
        """Return what is kept of an image, which may have been swept away since."""
        kept = await asyncio.to_thread(self._core.annotations().of_image, image_id)
        return AnnotationsReply(annotations=[Annotation.model_validate(each) for each in kept])

    async def delete(self, image_id: Id, annotation_id: Id) -> Response:
        """Delete an annotation; with the last one of an image, the copy of the image goes too."""
        if not await asyncio.to_thread(self._core.annotations().delete, image_id, annotation_id):
            raise NotKeptError(f"image '{image_id}' has no annotation '{annotation_id}'")
        return Response(status_code=204)

    async def export(self) -> JSONResponse:
        """Return all annotations in COCO's format; images are named by their ids."""
        kept = await asyncio.to_thread(self._core.annotations().all)
        return JSONResponse(await asyncio.to_thread(coco, kept))


def add_annotations(app: FastAPI, core: Core, keys: Keys) -> None:
    """Route requests to their handlers."""
    handlers = AnnotationHandlers(core, keys)
    gone: dict[int | str, dict[str, Any]] = {404: {"description": "none are kept, or none of this id"}}
    of_image = "/v1/images/{image_id}/annotations"
    app.add_api_route(of_image, handlers.accept, methods=["POST"], status_code=201, responses=gone)
    app.add_api_route(of_image, handlers.list_of_image, methods=["GET"], responses=gone)
    one = f"{of_image}/{{annotation_id}}"
    app.add_api_route(one, handlers.delete, methods=["DELETE"], status_code=204, responses=gone)
    app.add_api_route("/v1/annotations", handlers.export, methods=["GET"], responses=gone)


def _mask(body: AnnotationRequest, height: int, width: int) -> Mask:
    try:
        if isinstance(body.mask, RLE):
            return decode_rle(body.mask, height, width)
        return decode_png(body.mask, height, width)
    except ClickError as error:
        detail = [{"loc": ["body", "mask"], "msg": str(error), "type": "value_error"}]
        raise HTTPException(422, detail) from None
