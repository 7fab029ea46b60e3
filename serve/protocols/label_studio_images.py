"""Images of Label Studio's tasks: fetched from the one configured address, from no other.

The address in a task is whatever someone imported, and Label Studio's name in /setup whatever someone posted:
following either would let them read what only this server can reach.
"""

import logging
import time
from urllib.parse import urljoin, urlsplit

import httpx

from mst.errors import ImageError, ImageTooLargeError
from serve.errors import OverloadedError, RequestError
from serve.protocols.wire import image_bytes

_log = logging.getLogger("ray.serve.label_studio")

_TIMEOUT_SECONDS = 20.0
_ACCESS_SECONDS = 240.0  # Label Studio's own access tokens live for five minutes


class LabelStudioImages:
    """Fetches images.

    Args:
        url: of Label Studio, as this server reaches it; empty where only data URIs are accepted.
        token: of a user: a personal access token or a legacy one.
        max_bytes: of an image.
        transport: of httpx, for tests.
    """

    def __init__(
        self, url: str, token: str, max_bytes: int, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._url, self._token, self._max_bytes = url.rstrip("/") + "/", token, max_bytes
        self._http = httpx.AsyncClient(
            timeout=_TIMEOUT_SECONDS, follow_redirects=False, trust_env=False, transport=transport
        )
        self._access, self._access_ends = "", 0.0

    async def fetch(self, address: str) -> bytes:
        """Return the file of an image.

        Args:
            address: a path on Label Studio, a full address there, or a data URI.

        Raises:
            RequestError: it lies elsewhere, or no Label Studio is configured.
            ImageError: Label Studio does not give it.
            OverloadedError: it does not answer now.
        """
        if address.startswith("data:"):
            try:
                return image_bytes(address)
            except ValueError as error:
                raise ImageError(f"the task's image: {error}") from None
        try:
            return await self._download(self._checked(address))
        except httpx.InvalidURL:
            raise RequestError("the task's image: not an address") from None
        except httpx.HTTPError as error:
            _log.warning("Label Studio does not answer: %r", error)  # whose address is nobody's business
            raise OverloadedError("the task's image: Label Studio does not answer") from error

    def _checked(self, address: str) -> str:
        if self._url == "/":
            raise RequestError(
                "the task's image lies in Label Studio; start the server with label_studio_url and "
                "label_studio_token to let it fetch from there"
            )
        try:
            full = urljoin(self._url, address)
            there, ours = urlsplit(full), urlsplit(self._url)
        except ValueError:
            raise RequestError("the task's image: not an address") from None
        if (there.scheme, there.netloc) != (ours.scheme, ours.netloc):
            _log.warning("an image lies at %s, and not at %s", full[:200], self._url)
            raise RequestError("the task's image lies on another server than the Label Studio of this one")
        return full

    async def _download(self, url: str) -> bytes:
        headers = {"Authorization": await self._authorization()}
        async with self._http.stream("GET", url, headers=headers) as reply:
            if reply.status_code >= 500:
                raise OverloadedError(f"the task's image: Label Studio answers {reply.status_code}")
            if reply.status_code != 200:
                raise ImageError(f"the task's image: Label Studio answers {reply.status_code}")
            data = bytearray()
            async for chunk in reply.aiter_bytes():
                data += chunk
                if len(data) > self._max_bytes:
                    raise ImageTooLargeError(f"the task's image has more than {self._max_bytes} bytes")
            return bytes(data)

    async def _authorization(self) -> str:
        """A legacy token is sent as it is; a personal one, a JWT, is exchanged for a short-lived one."""
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        if time.monotonic() > self._access_ends:
            reply = await self._http.post(
                urljoin(self._url, "api/token/refresh"), json={"refresh": self._token}
            )
            if reply.status_code >= 500:
                raise OverloadedError(f"Label Studio answers {reply.status_code} to label_studio_token")
            access = _access(reply)
            if access is None:
                raise RequestError(f"Label Studio refuses label_studio_token: {reply.status_code}")
            self._access, self._access_ends = access, time.monotonic() + _ACCESS_SECONDS
        return f"Bearer {self._access}"


def _access(reply: httpx.Response) -> str | None:
    """The short-lived token of a reply that has one."""
    try:
        access = reply.json()["access"] if reply.status_code == 200 else None
    except (ValueError, KeyError, TypeError):
        return None
    return access if isinstance(access, str) else None
