"""A cache that is bounded by bytes: the least recently used goes first."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_OVERHEAD = 1024  # bytes that an entry is charged for Python's objects around its arrays
_PER_OBJECT = 192  # and for each of its key's, such as clicks


class ByteLRU(Generic[K, V]):
    """Values by key, as long as there is room; losing one costs time, never a result.

    Args:
        max_bytes: of all entries together; a larger one is not kept at all.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of a key, which becomes the most recently used; None where it is not kept."""
        if key not in self._items:
            return None
        self._items.move_to_end(key)
        return self._items[key][0]

    def put(self, key: K, value: V, size: int) -> None:
        """Keep a value of `size` bytes, at the cost of the least recently used."""
        size += _OVERHEAD + _PER_OBJECT * _objects(key)
        if size > self._max_bytes:
            return
        if key in self._items:
            self._bytes -= self._items.pop(key)[1]
        self._items[key] = (value, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._items.popitem(last=False)[1][1]


def _objects(key: Hashable) -> int:
    return sum(map(_objects, key)) if isinstance(key, tuple) else 1
