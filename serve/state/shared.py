"""What one HTTP replica was told by the model, for the others: clicks of one object may go to any of them."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from mst.clicks import Click
from serve.state.cache import ByteLRU
from serve.state.known import About, Known


class Shared:
    """A cache that all HTTP replicas ask, a deployment of its own where there are several.

    Args:
        max_bytes: of all that it keeps.
    """

    def __init__(self, max_bytes: int) -> None:
        self._known: ByteLRU[tuple[About, tuple[Click, ...]], Known] = ByteLRU(max_bytes)

    async def tell(self, about: About, known: Known) -> None:
        """Keep what the model said."""
        self._known.put((about, known.clicks), known, known.bytes)

    async def find(self, about: About, clicks: tuple[Click, ...], beyond: int) -> Known | None:
        """Return what the model said after the most of these clicks that it was asked about.

        Args:
            about: the image, the version and the start.
            clicks: in their order.
            beyond: so many of them the caller knows itself.
        """
        for number in range(len(clicks), beyond, -1):
            if (known := self._known.get((about, clicks[:number]))) is not None:
                return known
        return None


class Others(NamedTuple):
    """How a replica asks and tells the others."""

    find: Callable[[About, tuple[Click, ...], int], Awaitable[Known | None]]
    tell: Callable[[About, Known], Awaitable[None]]
