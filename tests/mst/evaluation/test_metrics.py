import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mst.evaluation.metrics import boundary_iou, iou
from tests.conftest import random_mask


def slow_band(mask, distance):
    """Pixels of a mask with background, or the outside of the image, within a square around them."""
    padded = np.pad(mask, distance)
    band = np.zeros_like(mask)
    for row, col in zip(*np.nonzero(mask), strict=True):
        band[row, col] = not padded[row : row + 2 * distance + 1, col : col + 2 * distance + 1].all()
    return band


def slow_boundary_iou(prediction, truth, void, dilation):
    distance = max(1, round(dilation * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
    bands = [slow_band(mask & ~void, distance) for mask in (prediction, truth)]
    union = (bands[0] | bands[1]).sum()
    return (bands[0] & bands[1]).sum() / union if union else 1.0


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 50), st.sampled_from([0.0, 0.02, 0.08, 0.5])
)
def test_boundary_iou_is_its_definition(seed, height, width, dilation):
    rng = np.random.default_rng(seed)
    prediction, truth, void = (random_mask(rng, height, width) for _ in range(3))
    assert boundary_iou(prediction, truth, void, dilation) == slow_boundary_iou(
        prediction, truth, void, dilation
    )
    no_void = boundary_iou(prediction, truth, None, dilation)
    assert no_void == slow_boundary_iou(prediction, truth, void & False, dilation)
    assert no_void == boundary_iou(truth, prediction, None, dilation)
    assert boundary_iou(truth, truth, void, dilation) == 1


def square(size, side):
    mask = np.zeros((size, size), bool)
    mask[10 : 10 + side, 10 : 10 + side] = True
    return mask


def test_boundary_iou_by_hand():
    # The diagonal is 141 pixels, 2 % of it are 3: of the two squares with a common corner, rings of 3 pixels.
    # They share the two sides of the corner, as long as the smaller square, which share 3 x 3 pixels.
    truth, prediction = square(100, 40), square(100, 46)
    common = 2 * 3 * 40 - 3 * 3
    union = (40**2 - 34**2) + (46**2 - 40**2) - common
    assert boundary_iou(prediction, truth) == common / union
    assert boundary_iou(prediction, truth) < iou(prediction, truth)


def test_the_border_of_the_image_is_contour():
    full = np.ones((50, 50), bool)
    assert boundary_iou(full, full) == 1
    inner = full.copy()
    inner[0] = False
    assert boundary_iou(inner, full) < 1
    assert boundary_iou(full & False, full) == 0


def test_empty_masks_agree():
    empty = np.zeros((5, 7), bool)
    assert boundary_iou(empty, empty) == 1
    assert boundary_iou(~empty, empty) == 0
    assert boundary_iou(~empty, empty, ~empty) == 1
    assert boundary_iou(np.ones((1, 1), bool), np.ones((1, 1), bool)) == 1


def test_what_is_predicted_in_void_changes_nothing():
    rng = np.random.default_rng(3)
    prediction, truth, void = (random_mask(rng) for _ in range(3))
    assert void.any()
    assert boundary_iou(prediction | void, truth, void) == boundary_iou(prediction & ~void, truth, void)


def test_thin_objects_are_all_contour():
    rng = np.random.default_rng(0)
    prediction, truth = (rng.random((40, 50)) > 0.8 for _ in range(2))
    assert boundary_iou(prediction, truth, dilation=1) == pytest.approx(iou(prediction, truth))
