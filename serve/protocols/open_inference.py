"""The Open Inference Protocol, version 2, as KServe and Triton speak it: tensors in, tensors out.

Inputs of the model
    image       BYTES [1], an image file (base64 in JSON, as it is in the binary form), or UINT8 [H, W, 3]
    clicks      FP32 [N, 3], any number type: x, y, and 1 for positive or 0 for negative
    box         FP32 [4], optional: x1, y1, x2, y2
    prior       UINT8 [H, W], optional: a mask to correct, 0 and 1, or 0 and 255
Outputs
    mask        UINT8 [H, W], 1 on the object
    score       FP32 [1], the IoU that is expected of the mask
    bbox        FP32 [4], x1, y1, x2, y2 around the mask, half-open; all 0 for an empty one
    probabilities   FP32 [H, W]
Without a list of outputs, mask and score are returned. Probabilities of more than 2**20 pixels are given in
binary alone. `threshold` is a parameter of the request.
"""

import asyncio
from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from mst import __version__
from mst.clicks import Click
from mst.data.pixels.arrays import as_mask
from mst.data.pixels.images import RGB
from serve.errors import RequestError, UnknownModelError
from serve.protocols.failures import IN_ITS_FORM, route_that_says
from serve.protocols.tensors import HEADER_LENGTH, Array, Parameters, Tensor, pack, split, unpack
from serve.protocols.wire import Wire, box_between, click_at, image_bytes
from serve.state.core import Core, Options, Segmentation, StoredImage
from serve.wire.limits import Limits, limited
from serve.wire.models import ModelInfo
from serve.wire.schemas import MAX_CLICKS

_INPUTS = {"image": ("BYTES", [1]), "clicks": ("FP32", [-1, 3])}
_OPTIONAL = {"box": ("FP32", [4]), "prior": ("UINT8", [-1, -1])}
_OUTPUTS = {
    "mask": ("UINT8", [-1, -1]),
    "score": ("FP32", [1]),
    "bbox": ("FP32", [4]),
    "probabilities": ("FP32", [-1, -1]),
}
_DEFAULT_OUTPUTS = ("mask", "score")


class Wanted(Wire):
    """An output that is asked for."""

    name: str
    parameters: Parameters = Parameters()


class Inference(Wire):
    """The JSON part of a request."""

    id: Annotated[str, Field(max_length=1000)] = ""
    parameters: Parameters = Parameters()
    inputs: Annotated[list[Tensor], Field(max_length=16)]
    outputs: Annotated[tuple[Wanted, ...], Field(max_length=16)] = ()


class Handlers:
    """What answers the protocol.

    Args:
        core: images and predictions.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def server(self) -> dict[str, Any]:
        """Describe the server."""
        return {"name": "mst", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def live(self) -> dict[str, bool]:
        """Answer as long as this process lives."""
        return {"live": True}

    async def ready(self) -> dict[str, bool]:
        """Answer once the model can."""
        await self._core.ready()
        return {"ready": True}

    async def model(self, name: str, version: str = "") -> dict[str, Any]:
        """Describe the model."""
        info = _named(await self._core.model(), name, version)
        return {
            "name": info.name,
            "versions": [info.version],
            "platform": "mst",
            "inputs": _described(_INPUTS | _OPTIONAL),
            "outputs": _described(_OUTPUTS),
        }

    async def model_ready(self, name: str, version: str = "") -> dict[str, Any]:
        """Answer once the model can."""
        info, _ = await self._core.ready()
        return {"name": _named(info, name, version).name, "ready": True}

    @limited(Limits(body="tensors"))
    async def infer(self, name: str, request: Request, version: str = "") -> Response:
        """Return the mask that the clicks mean."""
        _named(await self._core.model(), name, version)
        text, binary = split(await request.body(), request.headers.get(HEADER_LENGTH))
        asked = Inference.model_validate_json(text)
        inputs = unpack(asked.inputs, binary)
        unknown = set(inputs) - set(_INPUTS) - set(_OPTIONAL)
        if unknown:
            raise RequestError(f"unknown input '{min(unknown)}'; there are {', '.join(_INPUTS | _OPTIONAL)}")
        stored = await self._image(inputs)
        clicks = _clicks(inputs.get("clicks"), stored.pixels)
        found = await self._core.segment(stored, clicks, _options(asked, inputs, stored.pixels))
        return await asyncio.to_thread(_reply, asked, found)

    async def _image(self, inputs: dict[str, Array]) -> StoredImage:
        image = inputs.get("image")
        if image is None:
            raise RequestError("input 'image' is missing")
        if image.dtype == np.uint8:
            return await self._core.add_image(await asyncio.to_thread(_png, image))
        if image.dtype != object or image.size != 1:
            raise RequestError("input 'image' must be BYTES [1], an image file, or UINT8 [H, W, 3]")
        datum = image.flat[0]
        if isinstance(datum, bytes):  # the binary form; in JSON it is text
            return await self._core.add_image(datum)
        try:
            data = image_bytes(datum)
        except ValueError as error:
            raise RequestError(f"input 'image': {error}") from None
        return await self._core.add_image(data)


def _named(info: ModelInfo, name: str, version: str) -> ModelInfo:
    """Refuse a request for another model than the one that is served."""
    if name != info.name or version not in ("", info.version):
        there = f"'{info.name}' version {info.version}"
        raise UnknownModelError(f"no model '{name}' {version}".rstrip() + f"; there is {there}")
    return info


def _png(image: Array) -> bytes:
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise RequestError(f"input 'image' has shape {list(image.shape)}, which is not [H, W, 3]")
    done, data = cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()


def _clicks(clicks: Array | None, image: RGB) -> list[Click]:
    if clicks is None:
        return []
    if clicks.ndim != 2 or clicks.shape[1] != 3 or clicks.dtype == object or len(clicks) > MAX_CLICKS:
        raise RequestError(f"input 'clicks' must be numbers of shape [N, 3], N at most {MAX_CLICKS}")
    rows = clicks.astype(float).tolist()
    if any(label not in (0, 1) for _, _, label in rows):
        raise RequestError("input 'clicks': the third number is 1 for positive or 0 for negative")
    return [click_at(x, y, label == 1, image) for x, y, label in rows]


def _options(asked: Inference, inputs: dict[str, Array], image: RGB) -> Options:
    box, prior = inputs.get("box"), inputs.get("prior")
    if box is not None and (box.size != 4 or box.dtype == object or not np.isfinite(box).all()):
        raise RequestError("input 'box' must be four numbers: x1, y1, x2, y2")
    if prior is not None and prior.shape != image.shape[:2]:
        raise RequestError(f"input 'prior' must have the image's shape {list(image.shape[:2])}")
    corners = [] if box is None else box.astype(float).ravel().tolist()
    return Options(
        threshold=asked.parameters.threshold,
        box=box_between((corners[0], corners[1]), (corners[2], corners[3]), image) if corners else None,
        prior=None if prior is None else as_mask(prior),
    )


def _reply(asked: Inference, found: Segmentation) -> Response:
    box = found.box
    outputs: dict[str, Array] = {
        "mask": found.mask,
        "score": np.array([found.score], np.float32),
        "bbox": np.array([box.left, box.top, box.right, box.bottom] if box else [0] * 4, np.float32),
        "probabilities": found.prediction.probabilities,
    }
    names = [each.name for each in asked.outputs] or list(_DEFAULT_OUTPUTS)
    unknown = [name for name in names if name not in outputs]
    if unknown:
        raise RequestError(f"unknown output '{unknown[0]}'; there are {', '.join(outputs)}")
    binary = {name for name in names if asked.parameters.binary_data_output}
    for each in asked.outputs:  # what an output says comes before what the request says
        if each.parameters.binary_data is not None:
            (binary.add if each.parameters.binary_data else binary.discard)(each.name)
    about = {"model_name": found.model.name, "model_version": found.model.version}
    if asked.id:
        about["id"] = asked.id
    return pack(about, {name: (_OUTPUTS[name][0], outputs[name]) for name in names}, binary)


def _described(tensors: dict[str, tuple[str, list[int]]]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in tensors.items()]


def _say(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def router(core: Core) -> APIRouter:
    """Return the protocol's routes."""
    handlers = Handlers(core)
    routes = APIRouter(
        prefix="/v2",
        tags=["Open Inference Protocol"],
        route_class=route_that_says(_say),
        responses=IN_ITS_FORM,
    )
    routes.add_api_route("", handlers.server, methods=["GET"])
    routes.add_api_route("/health/live", handlers.live, methods=["GET"])
    routes.add_api_route("/health/ready", handlers.ready, methods=["GET"])
    for number, path in enumerate(("/models/{name}", "/models/{name}/versions/{version}")):
        routes.add_api_route(path, handlers.model, methods=["GET"], operation_id=f"v2_model_{number}")
        routes.add_api_route(
            f"{path}/ready", handlers.model_ready, methods=["GET"], operation_id=f"v2_model_ready_{number}"
        )
        routes.add_api_route(
            f"{path}/infer", handlers.infer, methods=["POST"], operation_id=f"v2_infer_{number}"
        )
    return routes
