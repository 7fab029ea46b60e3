"""Label Studio's brush masks: thi.ng/rle-pack over the bytes of an RGBA image."""

from collections.abc import Sequence

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


def decode_brush(values: Sequence[int], height: int, width: int) -> Mask:
    """Return the mask (height, width) of a brush: where its last channel is not 0.

    Args:
        values: of the bytes, as an export lists them.
        height: of the image.
        width: likewise.

    Raises:
        ValueError: they are no such bytes, or of an image of another size.
    """
    bits = _Bits(bytes(values))
    number, word, sizes = bits.read(32), bits.read(5) + 1, [bits.read(4) + 1 for _ in _COUNT_BITS]
    if number != height * width * _CHANNELS:
        raise ValueError(f"it has {number // _CHANNELS} pixels, its image {height} x {width}")
    if word != _WORD_BITS:
        raise ValueError(f"its values have {word} bits, not {_WORD_BITS}")
    found, at = np.zeros(number, np.uint8), 0
    while at < number:
        is_run, count = bits.read(1), bits.read(sizes[bits.read(2)]) + 1
        if at + count > number:
            raise ValueError("its runs are longer than it is")
        found[at : at + count] = bits.read(word) if is_run else [bits.read(word) for _ in range(count)]
        at += count
    return found.reshape(height, width, _CHANNELS)[..., -1] > 0


class _Bits:
    """Reads numbers of any width from bytes, the highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, width: int) -> int:
        first, self._at = self._at, self._at + width
        if self._at > 8 * len(self._data):
            raise ValueError("it ends too early")
        value = int.from_bytes(self._data[first // 8 : (self._at + 7) // 8])
        return value >> (-self._at % 8) & ((1 << width) - 1)


def _header(number: int) -> list[tuple[int, int]]:
    return [(number, 32), (_WORD_BITS - 1, 5), *((bits - 1, 4) for bits in _COUNT_BITS)]


def _bits(values: np.typing.NDArray[np.uint64], width: int) -> np.typing.NDArray[np.uint8]:
    """The lowest `width` bits of each value, highest first, one after the other."""
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64)
    return (values[:, None] >> shifts & np.uint64(1)).astype(np.uint8).ravel()
