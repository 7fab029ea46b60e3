"""Calls that come while the model is busy share its next run.

`serve.batch` closes a batch when a time is over, also while the model is still busy with the one before:
calls that trickle in during a long forward are then run one by one. Here a batch is closed when the model is
free to run it, so a lone call waits for nothing, and the batch grows with the load.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Generic, TypeVar

Call = TypeVar("Call")
Answer = TypeVar("Answer")
T = TypeVar("T")

_HOPELESS = 3  # failed runs in a row
_MOST_OFFERS = 8

_log = logging.getLogger("ray.serve.batching")


class Batcher(Generic[Call, Answer]):
    """Collects calls for a function that answers several at once.

    Args:
        run: answers each of a batch of calls, in a thread.
        max_batch: most calls in one run.
        key: what calls must have in common to share a run; the model that they want, say.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Call]], Sequence[Answer]],
        max_batch: int,
        key: Callable[[Call], Hashable],
    ) -> None:
        self._run, self._max_batch, self._key = run, max_batch, key
        self._thread = ThreadPoolExecutor(1, "batches")  # nothing else that blocks can be in its way
        self._waiting: deque[tuple[Call, asyncio.Future[Answer]]] = deque()
        self._offers: deque[Callable[[], object]] = deque(maxlen=_MOST_OFFERS)
        self._worker: asyncio.Task[None] | None = None
        self._began: float | None = None  # when the run under way began
        self._failed = 0  # runs in a row

    def check(self, most_seconds: float) -> None:
        """Say whether there is hope that a call is answered.

        Raises:
            RuntimeError: a run takes longer than `most_seconds`, or three in a row have failed.
        """
        if self._began is not None and time.monotonic() - self._began > most_seconds:
            raise RuntimeError(f"a run has taken more than {most_seconds:g} s")
        if self._failed >= _HOPELESS:
            raise RuntimeError(f"{self._failed} runs in a row have failed")

    async def __call__(self, call: Call) -> Answer:
        """Return the call's answer; the first to come is the first to be run."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        self._wake()
        return await future

    def offer(self, work: Callable[[], object]) -> None:
        """Do this while no call waits: the newest offer first, and not more than the newest few."""
        self._offers.append(work)
        self._wake()

    def _wake(self) -> None:
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            if batch := self._next_batch():
                await self._run_batch(batch)
            elif self._offers:
                await self._run_offer(self._offers.pop())
            else:
                break
        self._worker = None

    async def _run_offer(self, work: Callable[[], object]) -> None:
        try:
            await self._in_thread(work)
        except Exception:
            _log.exception("work that nobody waits for")

    async def _run_batch(self, batch: Sequence[tuple[Call, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._in_thread(partial(self._run, [call for call, _ in batch]))
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._failed += 1
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        else:
            self._failed = 0
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._began = time.monotonic()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._began = None

    def _next_batch(self) -> list[tuple[Call, asyncio.Future[Answer]]]:
        """Take the oldest call and those that may share its run, in their order."""
        while self._waiting and self._waiting[0][1].done():  # its caller has given up
            self._waiting.popleft()
        if not self._waiting:
            return []
        wanted = self._key(self._waiting[0][0])
        batch: list[tuple[Call, asyncio.Future[Answer]]] = []
        others: deque[tuple[Call, asyncio.Future[Answer]]] = deque()
        for call, future in self._waiting:
            if future.done():
                continue
            shares = len(batch) < self._max_batch and self._key(call) == wanted
            (batch if shares else others).append((call, future))
        self._waiting = others
        return batch
