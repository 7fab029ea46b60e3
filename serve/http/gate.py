"""The gate before all routes: who may pass, how many, how much each brings, and what is noted down of it."""

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from fastapi import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.keys import Headers, Keys, is_loopback
from serve.metrics import Metrics
from serve.protocols.tensors import HEADER_LENGTH
from serve.settings import ServeSettings
from serve.state.room import Room
from serve.wire.limits import Limits, declared

_log = logging.getLogger("ray.serve.requests")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(rb"[\w.-]{1,64}")
_NO_KEY = "no valid API key; send it as 'Authorization: Bearer KEY'"
_BODIES = 8  # bodies of the largest size that one replica holds at once
_MAX_ITEMS = 1_000_000  # braces, brackets and commas of a body: each becomes an object in memory
_UNTOLD = (b"", b"application/x-www-form-urlencoded")


class Refusal(NamedTuple):
    """Why a request may not pass."""

    status: int
    reason: str
    retry_after: int | None = None
    challenge: str = "Bearer"
    """Of a 401: how a key may be sent."""


@dataclass
class Door:
    """What an HTTP replica has in hand, and whether it takes more."""

    in_hand: int = 0
    """Requests, without probes and the page."""
    of_key: Counter[int | None] = field(default_factory=Counter)
    """Those of each key."""
    is_closed: bool = False
    """As before the server stops."""

    def refusal(self, key: int | None, settings: ServeSettings) -> Refusal | None:
        """Why another request, with a key, cannot come in."""
        if self.is_closed:
            return Refusal(503, "the server is about to stop", 1)
        if self.in_hand >= settings.max_requests:
            return Refusal(503, f"{self.in_hand} requests are in hand already", 1)
        if key is not None and self.of_key[key] >= settings.requests_of_key:
            return Refusal(429, f"{self.of_key[key]} requests with this key are in hand already", 1)
        return None

    @contextmanager
    def hold(self, key: int | None) -> Iterator[None]:
        """Have a request in hand."""
        self.in_hand += 1
        self.of_key[key] += 1
        try:
            yield
        finally:
            self.in_hand -= 1
            self.of_key[key] -= 1


class Gate:
    """ASGI middleware: refuses, limits, counts and logs requests.

    Args:
        app: what is behind it.
        settings: of the server.
        keys: who may pass.
        metrics: what is counted.
        door: of the replica.
        room: for the images of all requests.
        routes: of the application, in their order, which declare their limits (`serve.wire.limits`).
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        keys: Keys,
        metrics: Metrics,
        door: Door,
        room: Room,
        routes: Sequence[BaseRoute],
    ) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._door, self._room, self._routes = door, room, routes
        self._held = 0  # bytes of all bodies in hand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, limits = dict(scope["headers"]), _limits_of(scope, self._routes)
        reply = _Reply(send, headers.get(b"x-request-id", b""))
        start = time.perf_counter()
        self._metrics.arrived()
        try:
            key = self._keys.find(headers) if self._keys else None
            refusal = self._refusal(scope, headers, limits, key)
            if refusal:
                await reply.refuse(refusal)
            else:
                with nullcontext() if limits.is_light else self._door.hold(key), self._room.request():
                    await self._pass(_as_json(scope, headers, limits), receive, reply, limits)
        except Exception:
            _log.exception("request failed", extra={"request_id": reply.request_id})
            await reply.refuse(
                Refusal(500, "the server made a mistake; its log has it under the request's id")
            )
        finally:
            self._note(scope, reply, time.perf_counter() - start, limits)

    def _refusal(self, scope: Scope, headers: Headers, limits: Limits, key: int | None) -> Refusal | None:
        """Decide by what is known before the body is read."""
        if (unfit := _unfit(scope, headers, limits)) is not None:
            return unfit
        is_free = scope["method"] in ("GET", "HEAD") and not limits.needs_key
        if self._keys and not is_free:
            if key is None:
                return Refusal(401, _NO_KEY, challenge=_challenge(headers))
            wait = self._keys.wait(key)
            if wait:
                return Refusal(429, "too many requests with this key", math.ceil(wait))
        if not self._keys and not self._settings.allow_anonymous and not limits.is_probe:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            if not (_is_local(scope) and is_loopback(_without_port(host))):
                return Refusal(403, "without API keys only this machine is answered, under a name of its own")
        return None if limits.is_light else self._door.refusal(key, self._settings)

    async def _pass(self, scope: Scope, receive: Receive, reply: "_Reply", limits: Limits) -> None:
        limit, received, items = self._settings.max_bytes, 0, 0
        headers = dict(scope["headers"])
        json_bytes = _json_bytes(scope, limits, limit)
        declared = headers.get(b"content-length", b"")
        is_too_long = declared.isdigit() and (len(declared) > 15 or int(declared) > limit)
        until = time.monotonic() + self._settings.deadline_seconds
        has_ended = False

        async def read() -> Message:
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
            await self._app(scope, read, reply)
        finally:
            self._held -= received

    def _note(self, scope: Scope, reply: "_Reply", seconds: float, limits: Limits) -> None:
        """Count and log a request: never what it holds."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.answered(method, route, reply.status, seconds)
        if not limits.is_probe:
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
            headers.append((b"www-authenticate", refusal.challenge.encode()))
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


async def _before(until: float, receive: Callable[[], Awaitable[Message]]) -> Message:
    try:
        return await asyncio.wait_for(receive(), until - time.monotonic())
    except TimeoutError:
        raise HTTPException(408, "the request's body did not come in time") from None


def _limits_of(scope: Scope, routes: Sequence[BaseRoute]) -> Limits:
    """What the route that will answer declares, or one of the same path that knows other methods alone."""
    of_path = Limits()
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.NONE:
            continue
        found = declared(getattr(route, "endpoint", None) or getattr(route, "app", None))
        if match is Match.FULL:
            return found
        of_path = found
    return of_path


def _as_json(scope: Scope, headers: Headers, limits: Limits) -> Scope:
    """Take a body without a type, or with the one that `curl -d` gives to all, for the JSON that routes read.

    Not so that of a page of another site: a browser sends it without asking only where it is not called JSON.
    """
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if scope["method"] != "POST" or kind not in _UNTOLD or b"origin" in headers or limits.body == "image":
        return scope
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", b"application/json")]}


def _json_bytes(scope: Scope, limits: Limits, limit: int) -> int:
    """How many of a body's first bytes are JSON; all of them, the limit, where nothing else is known."""
    if limits.body == "image":
        return 0
    if limits.body == "json":
        return limit
    lengths = [value for name, value in scope["headers"] if name == HEADER_LENGTH.lower().encode()]
    # What is no number is refused before it is read; of several headers, the first is the one that counts.
    return int(lengths[0]) if lengths and lengths[0].isdigit() and len(lengths[0]) <= 15 else limit


def _challenge(headers: Headers) -> str:
    """Let a browser that opens /docs ask its user for the key; the page where one clicks asks by itself."""
    is_page = b"text/html" in headers.get(b"accept", b"")
    return 'Basic realm="MST"' if is_page else "Bearer"


def _unfit(scope: Scope, headers: Headers, limits: Limits) -> Refusal | None:
    """Why nobody may send this, with a key or without."""
    if _is_of_another_site(scope, headers):
        return Refusal(403, "a page of another site asks this; the server's own page alone may")
    kind = headers.get(b"content-type", b"").lower()
    if limits.body != "json" and kind.startswith((b"multipart/", b"text/")):
        right = {
            "image": "the image file itself, as `curl --data-binary @photo.jpg` does, and no form or text",
            "tensors": "JSON, with tensors behind it where a header says its length, and no form or text",
        }
        return Refusal(415, f"send as the body {right[limits.body]}")
    return None


def _is_of_another_site(scope: Scope, headers: Headers) -> bool:
    """Whether a browser sends what a page of another site asks for, which it does not let that page read."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return False
    site = headers.get(b"sec-fetch-site")  # what a proxy does to Host is nothing to it
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return client is None or is_loopback(client[0])


def _without_port(host: str) -> str:
    return re.sub(r":\d*$", "", host)
