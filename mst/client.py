"""A small client of the HTTP interface in `serve/`.

client = Client("http://127.0.0.1:8000")
mask = client.segment(image, [Click(row=80, col=120, is_positive=True)]).mask
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import httpx
import numpy as np
from pycocotools import mask as coco_mask

from mst.clicks import Click, Mask
from mst.data.images import RGB
from mst.errors import ServerError
from mst.predictor import Segment


@dataclass(frozen=True)
class Segmentation:
    """The server's answer to a list of clicks."""

    mask: Mask
    """(H, W)."""
    score: float
    """The IoU that the model expects of the mask, 0 .. 1."""
    model: str
    """Name and version of the model that made it."""


class Client:
    """Talks to one server.

    Args:
        url: of the server.
        timeout: seconds to wait for an answer.
        transport: of httpx, for tests.
    """

    def __init__(
        self, url: str, *, timeout: float = 60.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._http = httpx.Client(base_url=url, timeout=timeout, transport=transport)

    def upload(self, image: RGB) -> str:
        """Store an image (H, W, 3) and return its id.

        Raises:
            ServerError: the server refused it or could not be reached.
        """
        return str(self._post("/v1/images", content=_png(image))["image_id"])

    def mask(self, image_id: str, clicks: Sequence[Click]) -> Segmentation:
        """Return the mask of the object that the clicks mean, on a stored image.

        Raises:
            ServerError: the server refused the clicks or could not be reached.
        """
        return _read(self._post(f"/v1/images/{image_id}/mask", json=_request(clicks)))

    def segment(self, image: RGB, clicks: Sequence[Click]) -> Segmentation:
        """Return the mask of the object that the clicks mean, on an image (H, W, 3), in one call.

        Raises:
            ServerError: the server refused the image or the clicks, or could not be reached.
        """
        encoded = base64.b64encode(_png(image)).decode()
        return _read(self._post("/v1/segment", json={"image": encoded, **_request(clicks)}))

    def open(self, image: RGB) -> Segment:
        """Return a function from clicks on this image to a mask, as `mst.evaluation` takes it."""
        image_id = self.upload(image)
        return lambda clicks: self.mask(image_id, clicks).mask

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        try:
            reply = self._http.post(path, **body)
        except httpx.HTTPError as error:
            raise ServerError(f"{self._http.base_url}: {error}") from error
        if reply.is_error:
            raise ServerError(f"{path}: {reply.status_code} {reply.text}")
        answer: dict[str, Any] = reply.json()
        return answer


def _png(image: RGB) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def _request(clicks: Sequence[Click]) -> dict[str, Any]:
    sent = [{"x": click.col, "y": click.row, "is_positive": click.is_positive} for click in clicks]
    return {"clicks": sent, "format": "rle"}


def _read(reply: dict[str, Any]) -> Segmentation:
    mask = np.asarray(coco_mask.decode(reply["mask"]), dtype=bool)
    return Segmentation(mask, reply["score"], f"{reply['model']['name']}/{reply['model']['version']}")
