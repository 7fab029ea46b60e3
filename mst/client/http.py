"""Requests to one server, tried again where that may help."""

import base64
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from mst.clicks import Click, Mask
from mst.client.retry import Retry, clicks_done, is_json, is_passing
from mst.client.wire import Segmentation, to_file, to_request, to_segmentation
from mst.data.pixels.arrays import AnyImage
from mst.errors import ServerError
from mst.predictor import Segment
from mst.zoom import Box


class Client:
    """Talks to one server; threads may share it.

    Args:
        url: of the server.
        api_key: sent as a bearer token, where the server wants one.
        timeout: seconds to wait for an answer to one try.
        retry: of calls that fail for a passing reason.
        transport: of httpx, for tests.

    Raises:
        ServerError: the address is none, or the key has characters that no header can have.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {_in_header(api_key)}"} if api_key else {}
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
        except httpx.InvalidURL as error:
            raise ServerError(f"'{url}' is no address of a server: {error}") from None
        self._retry = retry or Retry()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def upload(self, image: AnyImage) -> str:
        """Store an image, as `mst.data.pixels.arrays.as_image` takes it, and return its id.

        Raises:
            ImageError: it has no one meaning, or cannot be read.
            ServerError: the server refused it or could not be reached.
        """
        answer = self._post("/v1/images", content=to_file(image).data)
        if not isinstance(answer.get("image_id"), str):
            raise ServerError("/v1/images: the server's answer has no image_id")
        return str(answer["image_id"])

    def mask(
        self, image_id: str, clicks: Sequence[Click], *, box: Box | None = None, prior: Mask | None = None
    ) -> Segmentation:
        """Return the mask of the object that the clicks mean, on a stored image; see `segment`.

        Raises:
            ClickError, MaskError: the clicks, the box or the prior mask are none.
            ServerError: the server refused them or could not be reached.
        """
        return to_segmentation(self._post(f"/v1/images/{image_id}/mask", json=to_request(clicks, box, prior)))

    def segment(
        self,
        image: AnyImage,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: Mask | None = None,
    ) -> Segmentation:
        """Return the mask of the object that the clicks mean, in one call.

        Args:
            image: (H, W, 3) uint8, or what else `mst.data.pixels.arrays.as_image` takes; clicks on a file,
                and its mask, are of its upright pixels.
            clicks: all clicks on the object, in pixels of the image.
            box: around the object, half-open; it needs no click then.
            prior: (H, W), a mask that the clicks correct.

        Raises:
            ImageError, ClickError, MaskError: the image, the clicks, the box or the prior mask are none.
            ServerError: the server refused the image or the clicks, or could not be reached.
        """
        data, shape = to_file(image)
        request = {"image": base64.b64encode(data).decode(), **to_request(clicks, box, prior, shape)}
        return to_segmentation(self._post("/v1/segment", json=request), shape)

    def open(self, image: AnyImage) -> Segment:
        """Return a function from clicks on this image to a mask, as `mst.evaluation` takes it."""
        image_id = self.upload(image)
        return lambda clicks: self.mask(image_id, clicks).mask

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        reply = self._answer(path, body)
        if reply.is_error:
            raise ServerError(f"{path}: {reply.status_code} {reply.text}")
        if reply.is_redirect or not is_json(reply):
            raise ServerError(f"{path}: no answer of this server, but {reply.status_code} {reply.text[:200]}")
        try:
            answer = reply.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{path}: the server's answer is cut short, or no JSON object")
        return answer

    def _answer(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The first answer that is not of a passing kind, or the last one when the time for tries is over."""
        start, number, most_done = time.monotonic(), 0, 0
        while True:
            reply, failure = None, None
            try:
                reply = self._http.post(path, **body)
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise ServerError(f"'{self._http.base_url}' is no address of a server: {error}") from error
            except httpx.TransportError as error:
                failure = error
            if reply is not None and not is_passing(reply):
                return reply
            if reply is not None and (done := clicks_done(reply)) > most_done:
                start, number, most_done = time.monotonic(), 0, done
            wait = self._retry.wait(number, reply)
            if time.monotonic() - start + wait > self._retry.seconds:
                break
            time.sleep(wait)
            number += 1
        if reply is not None:
            return reply
        tries = f"after {number + 1} tries" if number else "at the first try"
        raise ServerError(f"{self._http.base_url}: {failure}, {tries}") from failure


def _in_header(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ServerError("the API key has characters that a header cannot have; it is plain ASCII")
    return key
