"""What predictions start from, and the caches that keep them."""

import tracemalloc

import numpy as np
import pytest

from mst.clicks import Click
from mst.zoom import Box
from serve.state.cache import ByteLRU
from serve.state.known import start_of


def test_a_box_is_a_click_on_its_centre_and_clicks_beyond_its_corners():
    start = start_of(None, Box(10, 20, 30, 60), 100, 61)
    corners = [Click(row, col, False) for row in (9, 30) for col in (19, 60)]
    assert start.clicks == (Click(19, 39, True), *corners)
    assert [each.is_positive for each in start_of(None, Box(0, 0, 100, 61), 100, 61).clicks] == [True]
    keys = {start_of(prior, box, 100, 61).key for prior in (None, *(np.eye(100, 61, k) > 0 for k in (0, 1)))
            for box in (None, Box(0, 0, 9, 9), Box(0, 0, 9, 8))}  # fmt: skip
    assert len(keys) == 9


@pytest.mark.parametrize("clicks", [1, 200])
def test_a_cache_of_the_smallest_values_takes_no_more_memory_than_it_may(clicks):
    cache = ByteLRU(2_000_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000 // (1 + clicks // 10)):
            key = (f"{number:064}", tuple(Click(1000 + number, 2000 + each, True) for each in range(clicks)))
            cache.put(key, (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.float32)), 7)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 100_000 < taken < 2_000_000


def test_a_cache_keeps_what_was_used_last_within_its_bytes():
    cache, large = ByteLRU(10_000_000), 1_000_000  # beside which what an entry is charged more is nothing
    cache.put("a", 1, 4 * large)
    cache.put("b", 2, 4 * large)
    assert cache.get("a") == 1
    cache.put("c", 3, 4 * large)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    cache.put("a", 5, 5 * large)
    assert (cache.get("a"), cache.get("c")) == (5, 3)
    cache.put("d", 6, 11 * large)
    assert (cache.get("d"), cache.get("a")) == (None, 5)
