import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays
from scipy.ndimage import distance_transform_edt
from torch.utils._python_dispatch import TorchDispatchMode

from mst.training import clicks as under_test
from mst.training.clicks import next_clicks

NO_CLICK = [-1, -1, -1]
LAST = 0.999999


def smooth_masks(rng, *shape):
    """Masks of a few large blobs, which touch the borders and leave some masks full or empty."""
    noise = rng.standard_normal(shape)
    for index in np.ndindex(*shape[:-2]):
        noise[index] = cv2.GaussianBlur(noise[index], (0, 0), rng.uniform(0.5, 20))
    return noise > rng.choice([-0.3, 0, 0.05, 0.3], (*shape[:-2], 1, 1)) * noise.std((-2, -1), keepdims=True)


def squared_depth(region):
    """By SciPy, beyond the image is outside."""
    padded = np.pad(region, 1)
    return np.rint(distance_transform_edt(padded) ** 2).astype(int)[1:-1, 1:-1]


def well_inside(prediction, truth):
    """The sign of the click of one sample, and the pixels that it can fall on, in row-major order."""
    missed, wrong = squared_depth(truth & ~prediction), squared_depth(prediction & ~truth)
    is_positive = bool(missed.max() > wrong.max())
    depth = missed if is_positive else wrong
    return is_positive, np.argwhere(np.sqrt(depth) > np.sqrt(depth.max()) / 2)


def literal_click(prediction, truth, draw):
    is_positive, pixels = well_inside(prediction, truth)
    return [*pixels[math.floor(draw * len(pixels))], is_positive] if len(pixels) else NO_CLICK


def clicks_of(prediction, truth, draws):
    """`next_clicks` of NumPy arrays; a single sample is drawn for with all the draws."""
    draws = torch.tensor(draws, dtype=torch.float64)
    prediction, truth = (
        torch.from_numpy(np.broadcast_to(mask, (len(draws), *mask.shape[-2:])).copy())
        for mask in (prediction, truth)
    )
    clicks = next_clicks(prediction, truth, draws)
    assert clicks.dtype == torch.float32
    return clicks.tolist()


def assert_transforms_agree(regions):
    """Regions are (B, R, H, W)."""
    expected = [[squared_depth(region) for region in sample] for sample in regions]
    for transform in (under_test._squared_by_box, under_test._squared_by_batch):
        squared = transform(torch.from_numpy(regions))
        assert squared.dtype == torch.int32
        np.testing.assert_array_equal(squared, expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (40, 90), (90, 40), (101, 100)])
def test_both_transforms_equal_scipys(size):
    rng = np.random.default_rng(0)
    one_pixel, left, corner = np.zeros((3, *size), bool)
    one_pixel[size[0] // 2, size[1] // 3] = True
    left[:, : size[1] // 2] = True
    corner[-(size[0] // 2) :, -(size[1] // 2) :] = True
    full, empty = np.ones(size, bool), np.zeros(size, bool)
    assert_transforms_agree(np.stack([one_pixel, ~one_pixel, left, corner, full, empty]).reshape(3, 2, *size))
    for density in (0.1, 0.5, 0.9, 0.999):
        assert_transforms_agree(rng.random((3, 2, *size)) < density)
    assert_transforms_agree(smooth_masks(rng, 4, 2, *size))


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=4, max_dims=4, max_side=9)))
def test_both_transforms_equal_scipys_on_whatever_hypothesis_finds(regions):
    assert_transforms_agree(regions)


@pytest.mark.parametrize("transform", [under_test._squared_by_box, under_test._squared_by_batch])
def test_clicks_equal_the_definition(transform, monkeypatch):
    monkeypatch.setattr(under_test, "_squared_by_box", transform)
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(1, 70, 2))
        prediction, truth = smooth_masks(rng, 2, 5, height, width)
        truth[4] = prediction[4]
        draws = rng.random(5).tolist()
        found = clicks_of(prediction, truth, draws)
        assert found == [literal_click(*each) for each in zip(prediction, truth, draws, strict=True)]
        seen += [label for _, _, label in found]
    assert min(seen.count(label) for label in (-1, 0, 1)) >= 40


def test_a_tie_is_negative_and_the_deeper_error_wins():
    tie = np.zeros((9, 12), bool)
    tie[0:3, 0:3] = True
    assert clicks_of(tie, tie[::-1, ::-1], [0.0]) == [[1, 1, 0]]
    wide = np.zeros((9, 12), bool)
    wide[4:6] = True  # more pixels, less deep
    assert clicks_of(wide, tie, [0.0]) == [[1, 1, 1]]
    assert clicks_of(tie, wide, [0.0]) == [[1, 1, 0]]


def test_no_click_where_nothing_is_wrong():
    truth = np.random.default_rng(3).random((4, 8, 6)) < 0.5
    truth[0], truth[1] = True, False
    prediction = truth.copy()
    prediction[3, 2, 5] ^= True
    found = clicks_of(prediction, truth, [0.0, 0.5, LAST, 0.5])
    assert found == [NO_CLICK, NO_CLICK, NO_CLICK, [2, 5, truth[3, 2, 5]]]


def test_pixels_at_half_the_depth_are_not_well_inside():
    truth = np.zeros((9, 9), bool)
    truth[1:8, 1:8] = True  # depth 4 in its middle, 2 on the ring that is left out
    _, pixels = well_inside(~truth & False, truth)
    assert pixels.tolist() == [[row, col] for row in (3, 4, 5) for col in (3, 4, 5)]
    assert clicks_of(~truth & False, truth, [0.0, LAST]) == [[3, 3, 1], [5, 5, 1]]


def test_draws_choose_each_pixel_equally_often_from_the_first_to_the_last():
    prediction, truth = smooth_masks(np.random.default_rng(4), 2, 33, 47)
    is_positive, pixels = well_inside(prediction, truth)
    expected = [[*pixel, is_positive] for pixel in pixels.tolist()]
    assert len(expected) > 20
    assert clicks_of(prediction, truth, [0.0, LAST]) == [expected[0], expected[-1]]
    middles = (np.arange(3 * len(expected)) + 0.5) / (3 * len(expected))
    assert clicks_of(prediction, truth, middles.tolist()) == [each for each in expected for _ in range(3)]


def test_a_draw_that_was_rounded_up_to_one_chooses_the_last_pixel():
    truth = np.ones((2, 3), bool)
    assert clicks_of(truth & False, truth, [1.0]) == [[1, 2, 1]]


def test_an_accelerator_is_never_waited_for_but_to_end_the_transform():
    # Nothing can be read of tensors without values; sides below 31 end before the first look.
    masks = torch.zeros(2, 30, 40, dtype=torch.bool, device="meta")
    clicks = next_clicks(masks, masks, torch.zeros(2, dtype=torch.float64, device="meta"))
    assert clicks.shape == (2, 3)
    assert clicks.device.type == "meta"


class Count(TorchDispatchMode):
    """Counts the calls of operators by their names."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("depth", "looks"), [(3, 1), (15, 1), (17, 2), (40, 3), (90, 6)])
def test_the_transform_ends_soon_after_the_deepest_pixel_is_reached(depth, looks):
    region = torch.zeros(1, 1, 200, 201, dtype=torch.bool)
    region[..., : 2 * depth - 1, :] = True
    with Count() as count:
        assert under_test._squared_by_batch(region).max() == depth**2
    assert count.calls["nonzero"] == looks
    assert count.calls["minimum"] <= 3 + 2 * 16 * looks
