"""Label Studio's brush masks: thi.ng/rle-pack over the bytes of an RGBA image."""

import numpy as np

from mst.clicks import Mask

_CHANNELS = 4
_WORD_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)  # what the SDK writes; runs here use the last alone
_LONGEST = 1 << _COUNT_BITS[-1]


def brush_rle(mask: Mask) -> bytes:
    """Encode a mask (H, W) as the four equal channels, 0 or 255, of which Label Studio reads the last.

    A header of 32 bits with the number of bytes, 5 with the word size and 4 times 4 with the sizes of counts,
    each less one; then for each run a 1, the 2 bits of its count's size, the count less one, and the byte.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    parts = -(-lengths // _LONGEST)  # a long run is several
    values = np.repeat(flat[starts], parts) * np.uint64(255)
    counts = np.full(len(values), _LONGEST, np.uint64)
    counts[np.cumsum(parts) - 1] = (lengths - 1) % _LONGEST + 1
    size, index = np.uint64(_COUNT_BITS[-1]), np.uint64(len(_COUNT_BITS) - 1)
    word = np.uint64(_WORD_BITS)
    runs = ((np.uint64(1) << np.uint64(2) | index) << size | (counts - np.uint64(1))) << word | values
    header = [_bits(np.array([value], np.uint64), width) for value, width in _header(flat.size * _CHANNELS)]
    return np.packbits(np.concatenate([*header, _bits(runs, 1 + 2 + _COUNT_BITS[-1] + _WORD_BITS)])).tobytes()


def _header(number: int) -> list[tuple[int, int]]:
    return [(number, 32), (_WORD_BITS - 1, 5), *((bits - 1, 4) for bits in _COUNT_BITS)]


def _bits(values: np.typing.NDArray[np.uint64], width: int) -> np.typing.NDArray[np.uint8]:
    """The lowest `width` bits of each value, highest first, one after the other."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64)
    return (values[:, None] >> shifts & np.uint64(1)).astype(np.uint8).ravel()
