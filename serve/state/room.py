"""Room for images: how many pixels requests hold at once, from an image's header to the reply.

A large image takes some ten bytes of memory for each pixel while it is answered. Requests whose images do not
fit together wait for each other; the number of requests alone would bound nothing.
"""

from asyncio import CancelledError, Future, get_running_loop
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar


class _Request:
    """What one request holds."""

    pixels = 0


_REQUEST: ContextVar[_Request | None] = ContextVar("request", default=None)


class Room:
    """Pixels that requests may hold; who comes first is let in first.

    Args:
        pixels: of all requests together. An image with more of them is let in alone.
    """

    def __init__(self, pixels: int) -> None:
        self._most, self._taken = pixels, 0
        self._waiting: deque[tuple[int, Future[None]]] = deque()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Answer a request, which gives back at its end what it took."""
        mine = _Request()
        token = _REQUEST.set(mine)
        try:
            yield
        finally:
            _REQUEST.reset(token)
            self._give_back(mine.pixels)

    async def take(self, pixels: int) -> None:
        """Wait until there is room for an image of so many pixels.

        A request that holds one already does not wait for the next: two could wait for each other for ever.
        Outside any request nothing is counted.
        """
        mine = _REQUEST.get()
        if mine is None:
            return
        if mine.pixels or not (self._waiting or not self._has_room(pixels)):
            self._taken += pixels
        else:
            await self._wait(pixels)
        mine.pixels += pixels

    def _has_room(self, pixels: int) -> bool:
        return not self._taken or self._taken + pixels <= self._most

    async def _wait(self, pixels: int) -> None:
        turn = get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        try:
            await turn
        except CancelledError:
            with suppress(ValueError):  # it may have been passed over already
                self._waiting.remove((pixels, turn))
            self._give_back(0 if turn.cancelled() else pixels)  # and who waits behind may have room
            raise

    def _give_back(self, pixels: int) -> None:
        self._taken -= pixels
        while self._waiting and self._has_room(self._waiting[0][0]):
            taken, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._taken += taken
                turn.set_result(None)
