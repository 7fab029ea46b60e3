import math
from functools import partial

import cv2
import numpy as np
import pytest

from mst.clicks import Click
from mst.config import ClickConfig
from mst.robot import next_click, sample_clicks
from tests.conftest import random_mask


def literal_depth(region):
    """Distance of each pixel to the nearest pixel outside the region; beyond the image is outside."""
    height, width = region.shape
    outside = [(r, c) for r in range(-1, height + 1) for c in range(-1, width + 1)
               if not (0 <= r < height and 0 <= c < width and region[r, c])]  # fmt: skip
    depth = np.zeros(region.shape)
    for row, col in zip(*np.nonzero(region), strict=True):
        depth[row, col] = min(math.hypot(row - r, col - c) for r, c in outside)
    return depth


def literal_next_click(prediction, truth, void, clicked):
    missed, wrong = literal_depth(truth & ~prediction & ~void), literal_depth(prediction & ~truth & ~void)
    for click in clicked:
        missed[click.row, click.col] = wrong[click.row, click.col] = 0
    is_positive = missed.max() > wrong.max() + 1e-4
    depth = missed if is_positive else wrong
    first = int(np.argmax(depth > depth.max() - 1e-4))
    return Click(first // depth.shape[1], first % depth.shape[1], bool(is_positive))


def test_next_click_equals_the_protocol_taken_literally():
    rng = np.random.default_rng(1)
    for _ in range(25):
        prediction, truth, void = (random_mask(rng, 12, 15) for _ in range(3))
        clicked = [Click(int(rng.integers(12)), int(rng.integers(15)), True) for _ in range(2)]
        found = next_click(prediction, truth, void, clicked)
        if found is not None:
            assert found == literal_next_click(prediction, truth, void, clicked)


def transformed_next_click(prediction, truth, void, clicked):
    """The protocol by exact distances of all pixels, which are whole numbers once squared."""
    depths = []
    for error in (truth & ~prediction & ~void, prediction & ~truth & ~void):
        padded = np.pad(error, 1).astype(np.uint8)
        depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        depths.append(np.rint(depth**2))
        for click in clicked:
            depths[-1][click.row, click.col] = 0
    is_positive = depths[0].max() > depths[1].max()
    deepest = depths[0 if is_positive else 1]
    row, col = np.unravel_index(deepest.argmax(), deepest.shape)
    return Click(int(row), int(col), bool(is_positive)) if deepest.max() else None


def test_next_click_equals_the_protocol_in_deep_errors_and_ties():
    rng = np.random.default_rng(5)
    for case in range(300):
        height, width = (int(side) for side in rng.integers(1, 121, 2))
        if case % 2 and min(height, width) > 1:  # rectangles, whose middles tie
            prediction, truth, void = (random_mask(rng, height, width) for _ in range(3))
        else:
            noise = rng.standard_normal((3, height, width))
            smooth = [cv2.GaussianBlur(each, (0, 0), rng.uniform(0.5, 40)) for each in noise]
            prediction, truth, void = (each > level for each, level in zip(smooth, (0, 0, 0.05), strict=True))
        void &= rng.random() < 0.5
        clicked = []
        for _ in range(4):  # the deepest pixels are taken one after the other
            expected = transformed_next_click(prediction, truth, void, clicked)
            assert next_click(prediction, truth, void, clicked) == expected
            clicked += [expected] if expected else []


def test_first_click_is_the_middle_of_the_object_and_a_tie_is_negative():
    truth = np.zeros((9, 9), bool)
    truth[2:7, 2:7] = True
    assert next_click(truth & False, truth) == Click(4, 4, True)
    tie = np.zeros((9, 9), bool)
    tie[0:3, 0:3] = True
    assert next_click(tie, tie[::-1, ::-1]) == Click(1, 1, False)


def test_no_click_where_nothing_is_wrong():
    truth = np.ones((4, 4), bool)
    assert next_click(truth, truth) is None


def test_void_pixels_are_not_clicked():
    truth = np.zeros((8, 8), bool)
    truth[:, :4] = True
    assert next_click(truth & False, truth, void=truth) is None


def test_clicks_do_not_depend_on_where_arrays_lie_in_memory():
    rng = np.random.default_rng(4)
    for _ in range(30):
        truth = cv2.GaussianBlur(rng.random((56, 56)), (0, 0), 5) > 0.5
        nothing, drawn, held = truth & False, set(), []
        for _ in range(20):
            held.append(np.empty(rng.integers(1, 5000), np.uint8))  # moves what is allocated next
            drawn.add(next_click(nothing, truth))
        assert len(drawn) == 1


def test_sampled_clicks_lie_where_their_sign_says():
    rng = np.random.default_rng(3)
    config = ClickConfig()
    counts = []
    for _ in range(200):
        mask, others = random_mask(rng), random_mask(rng)
        clicks = sample_clicks(mask, partial(np.copy, others), rng, config)
        positive = [click for click in clicks if click.is_positive]
        assert all(mask[click.row, click.col] == click.is_positive for click in clicks)
        assert bool(positive) == bool(mask.any())
        assert max(len(positive), len(clicks) - len(positive)) <= config.max_clicks
        counts.append(len(positive))
    # 1 + a count with P(n) ~ 0.8^n for n < 24 has mean 4.9; the few empty masks lower it.
    assert 4 < np.mean(counts) < 5.5


@pytest.mark.parametrize(("share", "expected"), [(0.0, range(5)), (0.5, range(35, 66)), (1.0, [100])])
def test_a_first_click_lies_where_an_evaluation_s_does_as_often_as_is_asked(share, expected):
    rng = np.random.default_rng(4)
    mask = np.zeros((40, 50), bool)
    mask[5:30, 10:45] = True
    centre = next_click(np.zeros_like(mask), mask)
    drawn = [sample_clicks(mask, lambda: ~mask, rng, ClickConfig(centred=share)) for _ in range(100)]
    assert sum(clicks[0] == centre for clicks in drawn) in expected


def test_negative_clicks_lie_where_ritm_draws_them():
    """A tenth anywhere beside the object, four on other objects, half in the band along its border."""
    rng = np.random.default_rng(5)
    mask, others = np.zeros((2, 300, 300), bool)
    mask[100:120, 100:120] = others[200:210, 200:210] = True
    band = (cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5) <= 2) & ~mask
    drawn = [sample_clicks(mask, lambda: others, rng, ClickConfig()) for _ in range(1500)]
    pixels = [(click.row, click.col) for clicks in drawn for click in clicks if not click.is_positive]
    shares = [np.mean([region[pixel] for pixel in pixels]) for region in (~(others | band), others, band)]
    assert len(pixels) > 5000
    assert shares == pytest.approx([0.1, 0.4, 0.5], abs=0.02)


@pytest.mark.parametrize("corner", [np.s_[1:21, 1:21], np.s_[-21:-1, -21:-1]])
def test_the_band_along_an_objects_border_reaches_the_images_border(corner):
    rng, mask = np.random.default_rng(5), np.zeros((2000, 2000), bool)
    mask[corner] = True
    drawn = [sample_clicks(mask, lambda: np.zeros_like(mask), rng, ClickConfig()) for _ in range(60)]
    near = {(c.row, c.col) for clicks in drawn for c in clicks if not c.is_positive}
    edge = 0 if corner[0].start > 0 else 1999
    assert any(row == edge and abs(col - edge) < 30 for row, col in near)
    assert any(col == edge and abs(row - edge) < 30 for row, col in near)


def test_an_empty_object_has_no_positive_clicks():
    nothing = np.zeros((20, 20), bool)
    clicks = [
        sample_clicks(nothing, lambda: nothing, np.random.default_rng(i), ClickConfig()) for i in range(20)
    ]
    assert any(clicks)
    assert not any(click.is_positive for each in clicks for click in each)
