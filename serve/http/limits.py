"""The gate before all routes: who may pass, how many, how much each brings, and what is noted down of it."""

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.keys import Headers, Keys, is_loopback
from serve.metrics import Metrics
from serve.protocols.tensors import HEADER_LENGTH
from serve.settings import ServeSettings

_log = logging.getLogger("ray.serve.requests")

_PROBES = ("/healthz", "/readyz")
_PAGE = ("/", "/favicon.ico", "/web/")
_LIGHT = (*_PROBES, *_PAGE, "/metrics")  # answered however much there is to do
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(rb"[\w.-]{1,64}")
_BODIES = 8  # bodies of the largest size that one replica holds at once
_MAX_ITEMS = 1_000_000  # braces, brackets and commas of a body: each becomes an object in memory
_IMAGES = "/v1/images"  # whose body is no JSON
_UNTOLD = (b"", b"application/x-www-form-urlencoded")
_TENSORS = "/v2/"  # where a body may be JSON up to what a header says, and tensors behind it


class Refusal(NamedTuple):
    """Why a request may not pass."""

    status: int
    reason: str
    retry_after: int | None = None


class Gate:
    """ASGI middleware: refuses, limits, counts and logs requests.

    Args:
        app: what is behind it.
        settings: of the server.
        keys: who may pass.
        metrics: what is counted.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, keys: Keys, metrics: Metrics) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._in_hand = 0
        self._held = 0  # bytes of all bodies in hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = dict(scope["headers"]), _path(scope)
        reply = _Reply(send, headers.get(b"x-request-id", b""))
        start = time.perf_counter()
        self._metrics.arrived()
        counts = scope["method"] == "POST" or not _is_one_of(path, _LIGHT)  # POST / is CVAT's click
        try:
            refusal = self._refusal(scope, headers, counts)
            if refusal:
                await reply.refuse(refusal)
            else:
                self._in_hand += counts
                try:
                    await self._pass(_as_json(scope, headers), receive, reply, headers)
                finally:
                    self._in_hand -= counts
        except Exception:
            _log.exception("request failed", extra={"request_id": reply.request_id})
            await reply.refuse(
                Refusal(500, "the server made a mistake; its log has it under the request's id")
            )
        finally:
            self._note(scope, reply, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: Headers, counts: bool) -> Refusal | None:
        """Decide by what is known before the body is read."""
        path = _path(scope)
        kind = headers.get(b"content-type", b"").lower()
        if path == _IMAGES and kind.startswith(b"multipart/"):
            why = "send the image file itself as the body, as `curl --data-binary @photo.jpg` does"
            return Refusal(415, f"{why}, and no form")
        is_free = scope["method"] in ("GET", "HEAD") and _is_one_of(path, (*_PROBES, *_PAGE))
        if self._keys and not is_free:
            key = self._keys.find(headers)
            if key is None:
                return Refusal(401, "no valid API key; send it as 'Authorization: Bearer KEY'")
            wait = self._keys.wait(key)
            if wait:
                return Refusal(429, "too many requests with this key", math.ceil(wait))
        if not self._keys and not self._settings.allow_anonymous and not _is_one_of(path, _PROBES):
            host = headers.get(b"host", b"localhost").decode("latin-1")
            if not (_is_local(scope) and is_loopback(_without_port(host))):
                return Refusal(403, "without API keys only this machine is answered, under a name of its own")
        if counts and self._in_hand >= self._settings.max_requests:
            return Refusal(503, f"{self._in_hand} requests are in hand already", 1)
        return None

    async def _pass(self, scope: Scope, receive: Receive, reply: "_Reply", headers: Headers) -> None:
        limit, received, items = self._settings.max_bytes, 0, 0
        json_bytes = _json_bytes(scope, limit)
        declared = headers.get(b"content-length", b"")
        is_too_long = declared.isdigit() and (len(declared) > 15 or int(declared) > limit)
        until = time.monotonic() + self._settings.deadline_seconds
        has_ended = False

        async def limited() -> Message:
            """Read on; what it raises is turned into a reply by the application."""
            nonlocal received, items, has_ended
            if is_too_long:
                raise HTTPException(413, f"the request's body has more than {limit} bytes")
            if has_ended:
                return await receive()
            message = await _before(until, receive)
            body = message.get("body", b"")
            text = body[: max(0, json_bytes - received)]
            received, self._held = received + len(body), self._held + len(body)
            has_ended = not message.get("more_body", False)
            if received > limit:
                raise HTTPException(413, f"the request's body has more than {limit} bytes")
            if self._held > _BODIES * limit:
                raise HTTPException(503, "too many large requests at once", {"Retry-After": "1"})
            items += text.count(b"{") + text.count(b"[") + text.count(b",")
            if items > _MAX_ITEMS:
                raise HTTPException(413, f"the request's body has more than {_MAX_ITEMS} items")
            return message

        try:
            await self._app(scope, limited, reply)
        finally:
            self._held -= received

    def _note(self, scope: Scope, reply: "_Reply", seconds: float) -> None:
        """Count and log a request: never what it holds."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.answered(method, route, reply.status, seconds)
        if route not in _PROBES:
            fields = {"request_id": reply.request_id, "method": method, "path": scope["path"][:200]}
            _log.info("request", extra={**fields, "status": reply.status, "ms": round(1000 * seconds, 1)})


class _Reply:
    """Sends a reply, and knows of it what is counted and logged.

    Args:
        send: as ASGI has it.
        request_id: that the client gave, if it gave any.
    """

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self.request_id = request_id.decode() if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        self.status = 0  # until it starts

    async def __call__(self, message: Message) -> None:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # Ray Serve sends the request's id, which it made or was given, with each reply.
            message = {
                **message,
                "headers": [*message.get("headers", []), (b"x-content-type-options", b"nosniff")],
            }
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal, unless a reply was begun already."""
        if self.status:
            return
        body = json.dumps(
            {"detail": refusal.reason, "error": refusal.reason}
        ).encode()  # Triton's clients read it
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", str(refusal.retry_after).encode()))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


async def _before(until: float, receive: Callable[[], Awaitable[Message]]) -> Message:
    try:
        return await asyncio.wait_for(receive(), until - time.monotonic())
    except TimeoutError:
        raise HTTPException(408, "the request's body did not come in time") from None


def _as_json(scope: Scope, headers: Headers) -> Scope:
    """Take a body without a type, or with the one that `curl -d` gives to all, for the JSON that routes read.

    Not so that of a page of another site: a browser sends it without asking only where it is not called JSON.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if scope["method"] != "POST" or kind not in _UNTOLD or b"origin" in headers or _path(scope) == _IMAGES:
        return scope
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", b"application/json")]}


def _json_bytes(scope: Scope, limit: int) -> int:
    """How many of a body's first bytes are JSON; all of them, the limit, where nothing else is known."""
    if _path(scope) == _IMAGES:
        return 0
    if not _path(scope).startswith(_TENSORS):
        return limit
    lengths = [value for name, value in scope["headers"] if name == HEADER_LENGTH.lower().encode()]
    # What is no number is refused before it is read; of several headers, the first is the one that counts.
    return int(lengths[0]) if lengths and lengths[0].isdigit() and len(lengths[0]) <= 15 else limit


def _path(scope: Scope) -> str:
    """The path below the prefix under which the server is shown."""
    prefix, path = scope.get("root_path", ""), str(scope["path"])
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path


def _is_one_of(path: str, known: tuple[str, ...]) -> bool:
    return any(
        path == each or (each.endswith("/") and each != "/" and path.startswith(each)) for each in known
    )


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return client is None or is_loopback(client[0])


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host)
