"""Label Studio's brush masks, there and back."""

import numpy as np
import pytest

from mst.data.pixels.brush import brush_rle, decode_brush
from tests.conftest import random_mask


def unpacked(data: bytes) -> np.ndarray:
    """thi.ng/rle-pack's decoder, bit by bit."""
    bits, at = "".join(f"{byte:08b}" for byte in data), 0

    def read(width: int) -> int:
        nonlocal at
        at += width
        return int(bits[at - width : at], 2)

    number, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < number:
        is_run, count = read(1), read(sizes[read(2)]) + 1
        out += [read(word)] * count if is_run else [read(word) for _ in range(count)]
    assert len(out) == number
    return np.array(out, np.uint8)


def test_brush_masks_decode_to_what_they_came_from():
    rng = np.random.default_rng(0)
    masks = [random_mask(rng) for _ in range(20)]
    masks += [np.zeros((3, 4), bool), np.ones((1, 1), bool), np.eye(7, dtype=bool)]
    masks += [np.ones((300, 300), bool), np.zeros((256, 64), bool)]  # runs longer than one count
    for mask in masks:
        channels = unpacked(brush_rle(mask)).reshape(*mask.shape, 4)
        for channel in range(4):
            np.testing.assert_array_equal(channels[..., channel], mask * 255)
        np.testing.assert_array_equal(decode_brush(list(brush_rle(mask)), *mask.shape), mask)


def test_values_that_are_no_runs_are_decoded_too():
    """Fields of rle-pack that our encoder never writes: counts of three bits, and values one by one."""
    channels = [0, 0, 0, 255, 9, 9, 9, 9]  # two pixels: the second one is painted, though faintly
    bits = f"{8:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}" + f"0{0:02b}{7:03b}"
    bits += "".join(f"{each:08b}" for each in channels)
    data = [int(bits[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(bits), 8)]
    assert decode_brush(data, 1, 2).tolist() == [[True, True]]


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        ([], (2, 2), "ends too early"),
        (list(brush_rle(np.ones((2, 2), bool))), (2, 3), "has 4 pixels, its image 2 x 3"),
        (list(brush_rle(np.ones((2, 2), bool)))[:-1], (2, 2), "ends too early"),
        ([300], (2, 2), "range"),
    ],
)
def test_what_is_no_brush_is_refused(values, size, message):
    with pytest.raises(ValueError, match=message):
        decode_brush(values, *size)
