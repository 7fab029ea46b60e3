"""Runs of pixels against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mst.data.pixels.runs import Runs, paint
from tests.conftest import random_mask


def encode(mask) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]


def random_masks():
    rng = np.random.default_rng(0)
    yield np.zeros((3, 5), bool)
    yield np.ones((3, 5), bool)
    yield np.ones((1, 1), bool)
    for _ in range(100):
        height, width = rng.integers(1, 60, 2)
        yield rng.random((height, width)) < rng.random()
        yield random_mask(rng, 300, 400)  # long runs: numbers of several characters


def test_runs_paint_what_was_encoded():
    for mask in random_masks():
        runs = Runs.parse(encode(mask), *mask.shape)
        assert runs.area == mask.sum()
        np.testing.assert_array_equal(paint([runs], mask.shape[0], 0, mask.shape[1]), mask)


def test_some_columns_of_a_union_of_masks():
    rng = np.random.default_rng(1)
    for _ in range(50):
        masks = [random_mask(rng) for _ in range(4)]
        height, width = masks[0].shape
        left, right = sorted(rng.integers(0, width + 1, 2))
        painted = paint([Runs.parse(encode(mask), height, width) for mask in masks], height, left, right)
        np.testing.assert_array_equal(painted, np.logical_or.reduce(masks)[:, left:right])


@pytest.mark.parametrize(
    "counts", [b"", b"no RLE", b"P", b"\xff\xff", b"PPPPPPPPPPPP0", encode(np.ones((4, 4), bool)), b"0N5"]
)
def test_malformed_counts_are_refused(counts):
    with pytest.raises(ValueError, match=r"the counts of the mask (are malformed|do not add up)"):
        Runs.parse(counts, 3, 5)
