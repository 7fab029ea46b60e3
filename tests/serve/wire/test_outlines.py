"""Outlines are valid polygons, by Shapely's judgement, and say what the mask says."""

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from serve.wire.outlines import polygons
from tests.conftest import random_mask

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))
CORNERS = np.eye(4, dtype=bool)
RING = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
CHESS = np.indices((7, 7)).sum(0) % 2 == 0


def valid(found):
    """The polygons of Shapely; each must be valid and cover something."""
    shapes = [shapely.Polygon(each.outer, each.holes) for each in found]
    for shape in shapes:
        assert shape.is_valid, shapely.is_valid_reason(shape)
        assert shape.area > 0
    return shapes


def painted(found, shape):
    """The mask that COCO's decoder makes of polygons: outer rings less holes."""
    mask = np.zeros(shape, bool)
    for each in found:
        for ring in (each.outer, *each.holes):
            flat = [coordinate for point in ring for coordinate in point]
            mask ^= coco_mask.decode(coco_mask.frPyObjects([flat], *shape)[0]).astype(bool)
    return mask


@settings(max_examples=500, deadline=None)
@given(MASKS, st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0, 100.0]), st.sampled_from([0.0, 2.0, 8.0]))
@example(CORNERS, 1.0, 0.0)
@example(CORNERS[::-1], 0.0, 0.0)
@example(RING, 1.0, 0.0)
@example(CHESS, 0.0, 0.0)
@example(~CHESS, 5.0, 0.0)
def test_outlines_of_any_mask_are_valid(mask, tolerance, min_area):
    found = polygons(mask, tolerance, min_area)
    valid(found)
    if tolerance == min_area == 0:
        np.testing.assert_array_equal(painted(found, mask.shape), mask)


def test_outlines_of_larger_masks_are_valid_and_near_their_masks():
    """Seven of three hundred such masks had outlines that crossed themselves at a tolerance of 1."""
    rng = np.random.default_rng(0)
    for number in range(300):
        mask = random_mask(rng, 120, 160) if number % 2 else blob(rng)
        for tolerance in (1.0, 3.0):
            found = polygons(mask, tolerance, 8)
            area = sum(shape.area for shape in valid(found))
            perimeter = sum(shape.length for shape in valid(polygons(mask)))
            assert abs(area - mask.sum()) <= tolerance * perimeter + 8 * len(polygons(mask))


def blob(rng):
    """A smooth noise, as masks of models are."""
    noise = rng.random((30, 40))
    grown = np.kron(noise, np.ones((4, 4)))
    for axis in (0, 1):
        grown = sum(np.roll(grown, shift, axis) for shift in range(-4, 5))
    return grown > np.quantile(grown, rng.uniform(0.3, 0.7))


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_parts_that_touch_at_a_corner_are_one_valid_polygon(tolerance):
    mask = np.zeros((20, 20), bool)
    mask[2:10, 2:10] = mask[10:18, 10:18] = True
    (shape,) = valid(polygons(mask, tolerance))
    assert abs(shape.area - 2 * 7.5**2) < 2 + 4 * tolerance


def test_holes_that_touch_at_a_corner_are_two_holes():
    mask = np.ones((20, 20), bool)
    mask[4:8, 4:8] = mask[8:12, 8:12] = False
    (found,) = polygons(mask, 1.0)
    assert len(found.holes) == 2
    valid([found])
