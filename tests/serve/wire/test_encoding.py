"""Masks as run lengths, PNG files and polygons, and back."""

import tracemalloc

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy.ndimage import label

from mst.errors import ClickError
from serve.wire.encoding import decode_png, decode_rle, png, rle, text
from serve.wire.outlines import polygons
from serve.wire.schemas import RLE
from tests.conftest import random_mask


def random_masks(count: int):
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.random((rng.integers(1, 60), rng.integers(1, 60))) > rng.random()
        yield random_mask(rng) if number % 2 else noise


def test_rle_is_cocos_both_ways():
    for mask in random_masks(200):
        encoded = rle(mask)
        np.testing.assert_array_equal(coco_mask.decode(encoded.model_dump()).astype(bool), mask)
        np.testing.assert_array_equal(decode_rle(encoded, *mask.shape), mask)
    large = np.zeros((3000, 2000), bool)
    large[100:2900, 1999] = large[5, 5] = True
    np.testing.assert_array_equal(decode_rle(rle(large), 3000, 2000), large)


@pytest.mark.parametrize(
    "counts",
    ["", "0", "P", "PPPPPPPPPPPP1", "~~~", "\u00e9", "oooooooooooo1", "`l20", "99999999", "\x00", "P" * 1351],
)
def test_counts_that_do_not_fill_the_mask_are_refused(counts):
    with pytest.raises(ClickError, match="do not add up to 30 x 40"):
        decode_rle(RLE(size=(30, 40), counts=counts), 30, 40)


def test_counts_of_more_letters_than_any_mask_needs_are_refused():
    rng = np.random.default_rng(0)
    for runs in (np.ones(400), np.tile([1, 17], 200), rng.integers(1, 40, 300), rng.integers(1, 2000, 20)):
        mask = np.repeat(np.arange(len(runs)) % 2 == 0, runs.astype(int))[
            None
        ]  # the first run is of length 0
        encoded = rle(mask)
        assert len(encoded.counts) <= 1 + mask.size * 9 // 8
        np.testing.assert_array_equal(decode_rle(encoded, *mask.shape), mask)
    with pytest.raises(ClickError, match="have 9999 letters; 30 x 40 pixels need at most 1351"):
        decode_rle(RLE(size=(30, 40), counts="4" * 9999), 30, 40)


def test_as_many_counts_as_a_large_image_may_have_are_decoded_in_little_memory():
    mask = np.tile([True, False], 2_000_000).reshape(2000, 2000).T
    encoded = rle(mask)
    assert len(encoded.counts) > 4_000_000
    tracemalloc.start()
    try:
        decoded = decode_rle(encoded, *mask.shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(decoded, mask)
    assert peak < 6 * mask.size


def test_a_mask_of_another_size_is_refused():
    mask = np.ones((30, 40), bool)
    with pytest.raises(ClickError, match=r"size \[30, 40\], the image \[40, 30\]"):
        decode_rle(rle(mask), 40, 30)
    np.testing.assert_array_equal(decode_png(text(png(mask)), 30, 40), mask)
    for wrong in (text(png(mask.T)), text(png(np.ones((60, 80), bool))), "?", "\u00e9", text(b"no image")):
        with pytest.raises(ClickError, match="mask"):
            decode_png(wrong, 30, 40)


def test_simplified_polygons_stay_within_their_error():
    rows, cols = np.ogrid[:200, :300]
    mask = ((rows - 100) ** 2 + (cols - 150) ** 2 < 80**2) & ((rows - 100) ** 2 + (cols - 150) ** 2 > 30**2)
    mask[3, 3] = mask[100, 80] = True
    mask[60, 150] = False  # specks: a part of one pixel and a hole of one
    exact, simple = polygons(mask), polygons(mask, tolerance=1.0, min_area=8)
    assert (len(exact), len(simple)) == (2, 1)
    (ring,) = simple
    assert (len(exact[1].holes) + len(exact[0].holes), len(ring.holes)) == (2, 1)
    assert len(ring.outer) < 40 < min(len(each.outer) for each in exact if each.holes)
    found = np.zeros(mask.shape, bool)
    for points in (ring.outer, *ring.holes):
        flat = [coordinate for point in points for coordinate in point]
        found ^= coco_mask.decode(coco_mask.frPyObjects([flat], *mask.shape)[0]).astype(bool)
    wrong = found != mask
    wrong[3, 3] = wrong[60, 150] = False
    near = np.abs(np.sqrt((rows - 100) ** 2 + (cols - 150) ** 2)[..., None] - [80, 30]).min(-1) < 2.5
    assert not (wrong & ~near).any()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 3), (1, 15), (2, 2), (4, 5)])
def test_the_least_area_is_in_pixels_of_parts_and_of_holes(rows, cols):
    part = np.zeros((20, 30), bool)
    part[4 : 4 + rows, 6 : 6 + cols] = True
    hole = np.ones((20, 30), bool)
    hole[4 : 4 + rows, 6 : 6 + cols] = False
    for least, is_kept in ((rows * cols, True), (rows * cols + 0.5, False)):
        assert len(polygons(part, min_area=least)) == is_kept
        assert len(polygons(hole, min_area=least)[0].holes) == is_kept


def test_parts_within_holes_and_diagonal_ones_are_measured_as_they_are():
    rng, seen = np.random.default_rng(0), 0
    for _ in range(100):
        mask = np.pad(rng.random(rng.integers(1, 30, 2)) > rng.uniform(0.2, 0.8), 1)
        parts, holes = (label(each, near)[0] for each, near in ((mask, np.ones((3, 3))), (~mask, None)))
        sizes = [np.unique(each, return_counts=True)[1] for each in (parts[mask], holes[holes > 1])]
        for least in (2, 3, 5, 9):
            found = polygons(mask, min_area=least)
            assert len(found) == (sizes[0] >= least).sum()
            if (sizes[0] >= least).all():  # the holes of a part that is left out go with it
                assert sum(len(each.holes) for each in found) == (sizes[1] >= least).sum()
                seen += len(sizes[1]) > 0
    assert seen > 20
