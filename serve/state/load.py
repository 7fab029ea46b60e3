"""How much work waits, in seconds: more than an annotator would wait for is refused at once.

A queue that is bounded by its length alone is too long for a slow model and too short for a fast one; and
calls that are given up after they waited have cost others their turn.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import OverloadedError

_NEWEST = 0.1  # weight of the newest interval in the running mean


class Load:
    """The calls of one HTTP replica that wait for the model.

    Args:
        patience: seconds of work that may wait.
        batch: calls that share a run of the model; so many may always wait.
    """

    def __init__(self, patience: float, batch: int = 1) -> None:
        self._patience, self._batch = patience, batch
        self._waiting = 0
        self._pace = 0.0  # seconds between two answers while calls wait: of all model replicas together
        self._since = 0.0

    @property
    def calls(self) -> int:
        """That wait now."""
        return self._waiting

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a block as a call that waits.

        Raises:
            OverloadedError: the calls that wait already are too much work.
        """
        expected = self._waiting * self._pace
        if expected > self._patience and self._waiting >= self._batch:
            raise OverloadedError(
                f"{self._waiting} clicks wait already, some {expected:.0f} s",
                retry_after=math.ceil(expected / 2),
            )
        if not self._waiting:
            now = time.monotonic()
            if now - self._since > self._patience:
                self._pace = 0.0  # what was learned so long ago, maybe while the model started, says nothing
            self._since = now
        self._waiting += 1
        try:
            yield
            self._answered()
        finally:
            self._waiting -= 1

    def _answered(self) -> None:
        now = time.monotonic()
        interval, self._since = now - self._since, now
        self._pace = interval if not self._pace else (1 - _NEWEST) * self._pace + _NEWEST * interval
