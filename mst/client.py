"""A client of the HTTP interface in `serve/`, and its command line.

client = Client("http://127.0.0.1:8000")
mask = client.segment(image, [Click(row=80, col=120, is_positive=True)]).mask

    python -m mst.client photo.jpg --click 120,80 --negative 30,40

Every call may be made twice with the same result: an image's id is made of its bytes, and a mask depends on
nothing but the request. A call that fails for a passing reason is therefore simply tried again.
"""

import argparse
import base64
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from upath import UPath

from mst.clicks import Click, Mask, as_click
from mst.command_line import run
from mst.data.arrays import AnyImage, as_image, as_mask
from mst.data.encode import decode_mask, encode_mask
from mst.data.files import check_writable, written_whole
from mst.data.images import check_suffix, decode_image, encode_image, read_file
from mst.drawing import draw_clicks, overlay
from mst.errors import ClickError, ServerError
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
    An answer that says that more clicks are done than before begins the time anew: many clicks on a new image
    take longer than the server gives one request, and it keeps what it did.

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
        """Store an image, as `mst.data.arrays.as_image` takes it, and return its id.

        Raises:
            ImageError: it has no one meaning, or cannot be read.
            ServerError: the server refused it or could not be reached.
        """
        answer = self._post("/v1/images", content=_file(image))
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
        return _read(self._post(f"/v1/images/{image_id}/mask", json=_request(clicks, box, prior)))

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
            image: (H, W, 3) uint8, or what else `mst.data.arrays.as_image` takes; clicks on a file, and its
                mask, are of its upright pixels.
            clicks: all clicks on the object, in pixels of the image.
            box: around the object, half-open; it needs no click then.
            prior: (H, W), a mask that the clicks correct.

        Raises:
            ImageError, ClickError, MaskError: the image, the clicks, the box or the prior mask are none.
            ServerError: the server refused the image or the clicks, or could not be reached.
        """
        encoded = base64.b64encode(_file(image)).decode()
        return _read(self._post("/v1/segment", json={"image": encoded, **_request(clicks, box, prior)}))

    def open(self, image: AnyImage) -> Segment:
        """Return a function from clicks on this image to a mask, as `mst.evaluation` takes it."""
        image_id = self.upload(image)
        return lambda clicks: self.mask(image_id, clicks).mask

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        reply = self._answer(path, body)
        if reply.is_error:
            raise ServerError(f"{path}: {reply.status_code} {reply.text}")
        if reply.is_redirect or not _is_json(reply):
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
            if reply is not None and not _is_passing(reply):
                return reply
            if reply is not None and (done := _clicks_done(reply)) > most_done:
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


def _is_json(reply: httpx.Response) -> bool:
    kind: str = reply.headers.get("Content-Type", "")
    return kind.startswith("application/json")


def _clicks_done(reply: httpx.Response) -> int:
    """How many clicks are done of a request that took too long; 0 where the reply says nothing of that."""
    try:
        done = reply.json().get("clicks_done", 0)
    except (ValueError, AttributeError):
        return 0
    return done if isinstance(done, int) else 0


def _is_passing(reply: httpx.Response) -> bool:
    """Whether another try may succeed; Ray Serve's proxy answers 500 for a replica that died."""
    return reply.status_code in _PASSING or (reply.status_code == 500 and not _is_json(reply))


def _file(image: AnyImage) -> bytes:
    """An image as a file; one that is a file already is sent as it is."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return read_file(UPath(image))
    return encode_image(as_image(image), ".png")


def _request(clicks: Sequence[Click], box: Box | None, prior: Mask | None) -> dict[str, Any]:
    plain = [as_click(each) for each in clicks]
    sent = [{"x": click.col, "y": click.row, "is_positive": click.is_positive} for click in plain]
    request: dict[str, Any] = {"clicks": sent, "format": "rle"}
    if box is not None:
        request["box"] = _corners(box)
    if prior is not None:
        prior = as_mask(prior)
        request["prior"] = {"size": prior.shape, "counts": encode_mask(prior).decode()}
    return request


def _corners(box: Box) -> list[int]:
    if not isinstance(box, Box):
        raise ClickError(f"{box!r} is no Box, as in Box(top=10, left=20, bottom=60, right=90)")
    corners = [box.left, box.top, box.right, box.bottom]
    if not all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in corners):
        raise ClickError(f"the box {tuple(box)} has other values than whole numbers of pixels")
    return [int(each) for each in corners]


def _read(reply: dict[str, Any]) -> Segmentation:
    try:
        mask = decode_mask(reply["mask"]["counts"], *reply["mask"]["size"])
        return Segmentation(mask, reply["score"], f"{reply['model']['name']}/{reply['model']['version']}")
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"the server's answer is no mask ({error!r})") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        MSTError: the file is no image, the result cannot be written, or the server refused it or could not be
            reached.
    """
    parser = argparse.ArgumentParser(
        description="Click on an image; write the mask over it.", allow_abbrev=False
    )
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument(
        "--click", dest="clicks", action="append", type=_positive, metavar="X,Y", required=True
    )
    parser.add_argument("--negative", dest="clicks", action="append", type=_negative, metavar="X,Y")
    parser.add_argument("--out", type=Path, help="png, jpg, webp, ... (default IMAGE_mask.png)")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server (default %(default)s)")
    parser.add_argument("--api-key", default=os.environ.get("MST_API_KEY"), help="default: $MST_API_KEY")
    parser.add_argument(
        "--patience", type=_seconds, default=30.0, help="seconds to try again (default %(default)s)"
    )
    given = parser.parse_args(argv)
    out = given.out or given.image.with_name(f"{given.image.stem}_mask.png")
    check_suffix(out.suffix)
    check_writable(UPath(out.parent))  # or the server would be asked in vain
    data = read_file(UPath(given.image))
    image = decode_image(data, name=str(given.image))
    with Client(given.url, api_key=given.api_key, retry=Retry(given.patience)) as client:
        answer = client.segment(data, given.clicks)
    drawn = encode_image(draw_clicks(overlay(image, answer.mask), given.clicks, scale=1), out.suffix)
    with written_whole(out) as writing:
        writing.write_bytes(drawn)
    print(f"{out}: {answer.mask.mean():.1%} of the image, expected IoU {answer.score:.2f}, {answer.model}")  # noqa: T201


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return seconds


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
