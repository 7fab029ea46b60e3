"""Work that several requests wait for at once is done once, and is given up when nobody waits any more."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Flights(Generic[K, V]):
    """Calls that are under way, by what they are to find."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[V]] = {}
        self._waiting: dict[K, int] = {}

    async def join(self, key: K, start: Callable[[], Awaitable[V]]) -> V:
        """Return what the call under way for `key` finds; where there is none, start one.

        A request that is cancelled leaves the others their call; the last one that leaves ends it.
        """
        if key not in self._tasks:
            self._tasks[key] = asyncio.ensure_future(_awaited(start))
            self._waiting[key] = 0
        task = self._tasks[key]
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            if self._tasks.get(key) is task:
                self._waiting[key] -= 1
                if task.done() or not self._waiting[key]:
                    del self._tasks[key], self._waiting[key]  # who comes later starts anew
                    task.cancel()


async def _awaited(start: Callable[[], Awaitable[V]]) -> V:
    return await start()
