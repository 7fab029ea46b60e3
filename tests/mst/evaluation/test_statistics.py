import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mst.evaluation import statistics
from mst.evaluation.statistics import (
    SCALE_EDGES,
    Failures,
    bootstrap_interval,
    count_failures,
    noc_by_scale,
    paired_comparison,
)

VALUES = arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e3, 1e3, width=32))
quick = settings(max_examples=30, deadline=None)


@quick
@given(VALUES, st.integers(0, 5))
def test_the_interval_contains_the_mean_and_stays_among_the_values(values, seed):
    low, high = bootstrap_interval(values, resamples=2_000, seed=seed)
    assert values.min() - 1e-9 <= low <= values.mean() + 1e-9
    assert values.mean() - 1e-9 <= high <= values.max() + 1e-9


@quick
@given(VALUES, st.floats(-1e3, 1e3))
def test_the_interval_moves_with_the_values(values, shift):
    moved = bootstrap_interval(values + shift, resamples=500)
    assert moved == pytest.approx(np.add(bootstrap_interval(values, resamples=500), shift), abs=1e-6)


def test_the_interval_is_that_of_theory_for_many_objects_and_shrinks_as_their_root():
    values = np.random.default_rng(1).normal(5, 2, 1600)
    for count in (100, 1600):
        part = values[:count]
        low, high = bootstrap_interval(part)
        assert high - low == pytest.approx(2 * 1.96 * part.std() / count**0.5, rel=0.05)
        assert (low + high) / 2 == pytest.approx(part.mean(), abs=0.05)


def test_the_interval_of_two_values_is_known_by_hand():
    # Means 0, 1/2, 1 with 1/4, 1/2, 1/4; of two images the ends are those of level 0.70 and of 0.18.
    assert bootstrap_interval([0, 1], level=0.4) == (0, 1)
    assert bootstrap_interval([0, 1], level=0.1) == (0.5, 0.5)
    assert bootstrap_interval([3]) == (3, 3)


def test_the_objects_of_an_image_are_drawn_together():
    values, images = np.array([1.0, 1, 1, 5, 5, 9]), ["a", "a", "a", "b", "b", "c"]
    low, high = bootstrap_interval(values, images, level=0.999)
    assert (low, high) == (1, 9)  # three times the first image, three times the last
    one_by_one = bootstrap_interval(np.repeat([1.0, 5, 9], 50), np.repeat(["a", "b", "c"], 50).tolist())
    assert one_by_one == bootstrap_interval([1.0, 5, 9])  # copies of an object tell nothing new


@pytest.mark.parametrize("images", [8, 20, 61])
def test_the_interval_covers_the_mean_as_often_as_it_says_where_objects_of_an_image_are_alike(images):
    rng = np.random.default_rng(images)
    owners = np.repeat(np.arange(images), 10).tolist()
    missed, missed_alone = 0, 0
    for _ in range(1_000):
        shared, own = rng.normal(size=(images, 1)), rng.normal(size=(images, 10))
        values = (0.2**0.5 * shared + 0.8**0.5 * own).ravel()
        low, high = bootstrap_interval(values, owners, resamples=400)
        missed += not low <= 0 <= high
        low, high = bootstrap_interval(values, resamples=100)
        missed_alone += not low <= 0 <= high
    assert 30 <= missed <= 80  # 50 are meant, with a standard deviation of 7; of 8 images it is some 65
    assert missed_alone > 150  # objects drawn one by one


def test_the_interval_depends_on_its_seed_alone():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=4) != bootstrap_interval(values, seed=5)


@pytest.mark.parametrize("values", [[], [1, np.nan], [[1, 2]], 3])
def test_what_has_no_interval_is_refused(values):
    with pytest.raises(ValueError, match="at least one finite number"):
        bootstrap_interval(values)


def test_a_level_is_checked():
    with pytest.raises(ValueError, match="level 95 is not between 0 and 1"):
        bootstrap_interval([1, 2], level=95)


@quick
@given(arrays.arrays(np.float64, st.integers(1, 9), elements=st.integers(-4, 4)), st.integers(1, 600))
def test_p_is_that_of_all_sign_flips(difference, resamples):
    flips = [abs((difference * signs).sum()) for signs in itertools.product((1, -1), repeat=len(difference))]
    exact = np.mean(np.array(flips) >= abs(difference.sum()))
    p = paired_comparison(difference, difference * 0, resamples=600).p
    assert p == exact
    drawn = paired_comparison(difference, difference * 0, resamples=resamples).p
    assert 0 < drawn <= 1


def test_signs_are_flipped_image_by_image():
    assert paired_comparison([1, 2, 3], [0, 0, 0], ["a", "a", "b"]).p == 2 / 4  # one by one 2 / 8
    assert paired_comparison([1, 2, 9], [0, 0, 0], ["a", "a", "b"]).p == 2 / 4
    with pytest.raises(ValueError, match="there are 2 objects and 1 images of them"):
        paired_comparison([1, 2], [1, 2], ["a"])


def test_p_by_hand():
    assert paired_comparison([1, 2, 3], [0, 0, 0]).p == 2 / 8
    assert paired_comparison([1, 2, 3, 9], [0, 0, 0, 9]).p == 2 / 8
    assert paired_comparison([0.1 + 0.2, 0], [0, 0.3]).p == 1
    assert paired_comparison([1] * 10, [0] * 10).p == 2 / 1024


@quick
@given(VALUES)
def test_p_of_a_method_against_itself_is_one(values):
    assert paired_comparison(values, values, resamples=100) == (0, 0, 0, 1)


@quick
@given(VALUES, st.randoms(use_true_random=False))
def test_the_other_way_round_only_the_sign_changes(values, random):
    other = np.array(random.sample(list(values), len(values)))
    there, back = (paired_comparison(*pair, resamples=200) for pair in ((values, other), (other, values)))
    assert there.mean_difference == -back.mean_difference
    assert there.p == back.p


def test_clearly_different_methods_are_told_apart():
    rng = np.random.default_rng(0)
    clicks = rng.integers(1, 20, 300)
    compared = paired_comparison(clicks + rng.integers(-1, 3, 300), clicks)
    assert compared.p == 1 / 10_001
    assert 0.3 < compared.low < compared.mean_difference < compared.high < 0.7


def test_p_is_uniform_where_methods_are_alike():
    rng = np.random.default_rng(0)
    ps = [paired_comparison(*rng.normal(size=(2, 30)), resamples=400, seed=trial).p for trial in range(400)]
    shares = np.searchsorted(np.sort(ps), [0.05, 0.25, 0.5, 0.75]) / len(ps)
    assert shares == pytest.approx([0.05, 0.25, 0.5, 0.75], abs=0.06)


def test_data_sets_weigh_alike():
    one, other = np.array([1.0, 1, 1, 1, 5]), np.zeros(5)
    found = paired_comparison(one, other, sets=["a", "a", "a", "a", "b"])
    assert found.mean_difference == (1 + 5) / 2
    assert found[1:3] == (3, 3)  # nothing varies within a set
    assert found.p == paired_comparison([1, 1, 1, 1, 20], [0] * 5).p  # the last weighs four times as much


def test_each_set_costs_a_degree_of_freedom(monkeypatch):
    counts = []
    monkeypatch.setattr(statistics, "_tail", lambda level, count: counts.append(count) or 0.025)
    one, other = [1, 2, 3, 4, 5, 6], [2, 2, 4, 4, 6, 6]
    paired_comparison(one, other, sets=["a", "a", "a", "b", "b", "b"])
    paired_comparison(one, other)
    assert counts == [5, 6]


def test_a_pair_needs_two_figures():
    with pytest.raises(ValueError, match="both figures of each object, but there are 2 and 3"):
        paired_comparison([1, 2], [1, 2, 3])


def test_noc_by_scale_groups_by_area():
    bins = noc_by_scale([0, 0.1, 0.24, 0.25, 0.9, 1], [20, 3, 4, 1, 2, 4], edges=(0, 0.1, 0.25, 0.5, 1))
    assert [each[:4] for each in bins] == [
        (0, 0.1, 1, 20),
        (0.1, 0.25, 2, 3.5),
        (0.25, 0.5, 1, 1),
        (0.5, 1, 2, 3),
    ]
    assert (bins[1].low, bins[1].high) == (3, 4)
    assert [each.smallest for each in noc_by_scale([0.3], [2], (0, 0.1, 0.2, 1))] == [0.2]


@quick
@given(arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1)))
def test_every_object_is_in_one_bin(shares):
    nocs = np.arange(1, len(shares) + 1)
    bins = noc_by_scale(shares, nocs)
    assert sum(each.objects for each in bins) == len(shares)
    assert sum(each.objects * each.noc for each in bins) == pytest.approx(nocs.sum())
    for each in bins:
        inside = (each.smallest <= shares) & ((shares < each.largest) | (shares == 1) & (each.largest == 1))
        assert inside.sum() == each.objects
    assert (SCALE_EDGES[0], SCALE_EDGES[5], SCALE_EDGES[-1]) == (0, 0.25, 1)


def test_objects_without_a_bin_are_refused():
    with pytest.raises(ValueError, match=r"area shares of 0.1 .. 0.9 exceed the edges 0.0 .. 0.5"):
        noc_by_scale([0.1, 0.9], [1, 2], (0, 0.5))
    with pytest.raises(ValueError, match="do not increase"):
        noc_by_scale([0.1], [1], (0, 0.5, 0.5))
    with pytest.raises(ValueError, match="2 area shares and 1 numbers of clicks"):
        noc_by_scale([0.1, 0.2], [1])


def test_a_success_at_the_last_click_is_a_failure_by_one_reading_alone():
    ious = [[0.5, 0.95], [0.5, 0.6, 0.9], [0.5, 0.6, 0.7], [0.4]]
    assert count_failures(ious, 0.9, 3) == Failures(never_reached=2, at_max_clicks=3)
