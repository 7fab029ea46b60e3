"""A client of the HTTP interface in `serve/`, and its command line.

client = Client("http://127.0.0.1:8000")
mask = client.segment(image, [Click(row=80, col=120, is_positive=True)]).mask

    python -m mst.client photo.jpg --click 120,80 --negative 30,40

Every call may be made twice with the same result: an image's id is made of its bytes, and a mask depends on
nothing but the request. A call that fails for a passing reason is therefore simply tried again.
"""

import argparse
import base64
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import httpx

from mst.clicks import Click, Mask
from mst.command_line import run
from mst.data.encode import decode_mask, encode_mask
from mst.data.images import RGB, decode_image
from mst.drawing import draw_clicks, overlay
from mst.errors import MSTError, ServerError
from mst.predictor import Segment
from mst.zoom import Box

_PASSING = frozenset({429, 502, 503, 504})  # too many requests; a server that starts, is full or is replaced


@dataclass(frozen=True)
class Segmentation:
    """The server's answer to a list of clicks."""

    mask: Mask
    """(H, W)."""
    score: float
    """The IoU that the model expects of the mask, 0 .. 1."""
    model: str
    """Name and version of the model that made it."""


@dataclass(frozen=True)
class Retry:
    """How a call is tried again that could not reach the server, or was answered 429, 502, 503 or 504.

    So is one with 500 from whoever stands before the server, which died meanwhile: its own errors are JSON.

    The wait doubles from try to try, with a random part so that many clients do not come back at once;
    a `Retry-After` of the server is kept to where it is longer.
    """

    seconds: float = 30.0
    """After the first try, in which another may begin; 0 for no second try."""
    first_wait: float = 0.1
    """Seconds before the second try."""
    max_wait: float = 5.0
    """Seconds that the wait grows to."""

    def wait(self, number: int, reply: httpx.Response | None) -> float:
        """Return the seconds to wait after try `number`, counted from 0, which `reply` answered."""
        backoff: float = min(self.max_wait, self.first_wait * 2**number) * random.uniform(0.5, 1)
        asked = reply.headers.get("Retry-After", "") if reply is not None else ""
        return max(backoff, float(asked)) if asked.isdecimal() else backoff


class Client:
    """Talks to one server; threads may share it.

    Args:
        url: of the server.
        api_key: sent as a bearer token, where the server wants one.
        timeout: seconds to wait for an answer to one try.
        retry: of calls that fail for a passing reason.
        transport: of httpx, for tests.
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
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=transport)
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

    def upload(self, image: RGB | bytes) -> str:
        """Store an image, (H, W, 3) or an image file's bytes, and return its id.

        Raises:
            ServerError: the server refused it or could not be reached.
        """
        return str(self._post("/v1/images", content=_file(image))["image_id"])

    def mask(
        self, image_id: str, clicks: Sequence[Click], *, box: Box | None = None, prior: Mask | None = None
    ) -> Segmentation:
        """Return the mask of the object that the clicks mean, on a stored image; see `segment`.

        Raises:
            ServerError: the server refused the clicks or could not be reached.
        """
        return _read(self._post(f"/v1/images/{image_id}/mask", json=_request(clicks, box, prior)))

    def segment(
        self,
        image: RGB | bytes,
        clicks: Sequence[Click],
        *,
        box: Box | None = None,
        prior: Mask | None = None,
    ) -> Segmentation:
        """Return the mask of the object that the clicks mean, in one call.

        Args:
            image: (H, W, 3), or an image file's bytes; the server turns a file as its EXIF orientation says.
            clicks: all clicks on the object, in pixels of the image.
            box: around the object, half-open; it needs no click then.
            prior: (H, W), a mask that the clicks correct.

        Raises:
            ServerError: the server refused the image or the clicks, or could not be reached.
        """
        encoded = base64.b64encode(_file(image)).decode()
        return _read(self._post("/v1/segment", json={"image": encoded, **_request(clicks, box, prior)}))

    def open(self, image: RGB | bytes) -> Segment:
        """Return a function from clicks on this image to a mask, as `mst.evaluation` takes it."""
        image_id = self.upload(image)
        return lambda clicks: self.mask(image_id, clicks).mask

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        reply = self._answer(path, body)
        if reply.is_error:
            raise ServerError(f"{path}: {reply.status_code} {reply.text}")
        if reply.is_redirect or not _is_json(reply):
            raise ServerError(f"{path}: no answer of this server, but {reply.status_code} {reply.text[:200]}")
        answer: dict[str, Any] = reply.json()
        return answer

    def _answer(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The first answer that is not of a passing kind, or the last one when the time for tries is over."""
        start, number = time.monotonic(), 0
        while True:
            reply, failure = None, None
            try:
                reply = self._http.post(path, **body)
            except httpx.UnsupportedProtocol as error:
                raise ServerError(f"'{self._http.base_url}' is no address of a server: {error}") from error
            except httpx.TransportError as error:
                failure = error
            if reply is not None and not _is_passing(reply):
                return reply
            wait = self._retry.wait(number, reply)
            if time.monotonic() - start + wait > self._retry.seconds:
                break
            time.sleep(wait)
            number += 1
        if reply is not None:
            return reply
        tries = f"after {number + 1} tries" if number else "at the first try"
        raise ServerError(f"{self._http.base_url}: {failure}, {tries}") from failure


def _is_json(reply: httpx.Response) -> bool:
    kind: str = reply.headers.get("Content-Type", "")
    return kind.startswith("application/json")


def _is_passing(reply: httpx.Response) -> bool:
    """Whether another try may succeed; Ray Serve's proxy answers 500 for a replica that died."""
    return reply.status_code in _PASSING or (reply.status_code == 500 and not _is_json(reply))


def _file(image: RGB | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def _request(clicks: Sequence[Click], box: Box | None, prior: Mask | None) -> dict[str, Any]:
    sent = [{"x": click.col, "y": click.row, "is_positive": click.is_positive} for click in clicks]
    request: dict[str, Any] = {"clicks": sent, "format": "rle"}
    if box is not None:
        request["box"] = [box.left, box.top, box.right, box.bottom]
    if prior is not None:
        request["prior"] = {"size": prior.shape, "counts": encode_mask(prior).decode()}
    return request


def _read(reply: dict[str, Any]) -> Segmentation:
    mask = decode_mask(reply["mask"]["counts"].encode(), *reply["mask"]["size"])
    return Segmentation(mask, reply["score"], f"{reply['model']['name']}/{reply['model']['version']}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        MSTError: the file is no image, or the server refused it or could not be reached.
    """
    parser = argparse.ArgumentParser(
        description="Click on an image; write the mask over it.", allow_abbrev=False
    )
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument(
        "--click", dest="clicks", action="append", type=_positive, metavar="X,Y", required=True
    )
    parser.add_argument("--negative", dest="clicks", action="append", type=_negative, metavar="X,Y")
    parser.add_argument("--out", type=Path, help="where to write (default IMAGE_mask.png, beside the image)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default %(default)s)")
    parser.add_argument("--api-key", default=os.environ.get("MST_API_KEY"), help="default: $MST_API_KEY")
    parser.add_argument(
        "--patience", type=float, default=30, help="seconds to try again (default %(default)s)"
    )
    given = parser.parse_args(argv)
    try:
        data = given.image.read_bytes()
    except OSError as error:
        raise MSTError(f"{given.image}: {error.strerror}") from None
    image = decode_image(data, name=str(given.image))
    with Client(given.url, api_key=given.api_key, retry=Retry(given.patience)) as client:
        answer = client.segment(data, given.clicks)
    out = given.out or given.image.with_name(f"{given.image.stem}_mask.png")
    drawn = draw_clicks(overlay(image, answer.mask), given.clicks, scale=1)
    out.write_bytes(_file(drawn))
    print(f"{out}: {answer.mask.mean():.1%} of the image, expected IoU {answer.score:.2f}, {answer.model}")  # noqa: T201


def _positive(text: str) -> Click:
    return _click(text, is_positive=True)


def _negative(text: str) -> Click:
    return _click(text, is_positive=False)


def _click(text: str, *, is_positive: bool) -> Click:
    try:
        col, row = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not X,Y in pixels, as in 120,80") from None
    return Click(row, col, is_positive)


if __name__ == "__main__":
    run(main)
