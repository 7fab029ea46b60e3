import math

import numpy as np
import pytest
import torch

from mst.clicks import (
    Click,
    check_clicks,
    click_maps,
    click_tensor,
)
from mst.errors import ClickError


def literal_maps(clicks, height, width, radius):
    maps = np.zeros((2, height, width))
    for click in clicks:
        for row in range(height):
            for col in range(width):
                if (row - click.row) ** 2 + (col - click.col) ** 2 <= radius**2:
                    maps[0 if click.is_positive else 1, row, col] = 1
    return maps


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_click_maps_equal_the_definition(radius):
    rng = np.random.default_rng(0)
    samples = [
        [],
        [Click(0, 0, True), Click(29, 39, False)],  # corners
        [Click(29, 39, True), Click(-3, 20, True), Click(100, 100, False)],  # beyond the border
        [Click(*rng.uniform(0, 30, 2), bool(rng.random() < 0.5)) for _ in range(24)],  # between pixels
    ]
    maps = click_maps(click_tensor(samples, 24), 30, 40, radius)
    for sample, drawn in zip(samples, maps, strict=True):
        np.testing.assert_array_equal(drawn, literal_maps(sample, 30, 40, radius))


def test_click_tensor_refuses_more_clicks_than_slots():
    with pytest.raises(ClickError, match="2 clicks do not fit into 1 slots"):
        click_tensor([[Click(1, 1, True), Click(2, 2, True)]], 1)


@pytest.mark.parametrize(
    ("clicks", "message"),
    [
        ([Click(1, 1, False)], "at least one positive click"),
        ([], "at least one positive click"),
        ([Click(1, 1, True), Click(10, 3, False)], "click 2 at row 10, col 3 lies outside"),
        ([Click(-1, 1, True)], "outside the image of 10 rows and 20 columns"),
        ([Click(math.nan, 1, True)], "outside"),
    ],
)
def test_impossible_clicks_are_refused(clicks, message):
    with pytest.raises(ClickError, match=message):
        check_clicks(clicks, 10, 20)


def test_unused_slots_are_marked_empty():
    clicks = click_tensor([[Click(1, 2, True)], []], 3)
    assert clicks.shape == (2, 3, 3)
    assert clicks[0, 0].tolist() == [1, 2, 1]
    assert torch.all(clicks[1, :, 2] == -1)
