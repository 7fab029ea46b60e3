"""The click protocol once more, slow and literal, against `mst.evaluation`; and what holds for any method.

Written from the protocol's text (shared/notes/evaluation.md), without the package's own clicks and metrics:
full-size distance transforms by SciPy, plain loops over pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from mst.data.annotations import Sample
from mst.evaluation import evaluate, evaluate_object, summarize
from tests.conftest import random_mask

Position = tuple[int, int, bool]
"""Row, column, and whether the click is positive."""


def depths(region: np.ndarray, clicked: Sequence[Position]) -> np.ndarray:
    """Squared distances to the nearest pixel outside, or beyond the border: whole numbers, for ties."""
    padded = np.pad(region, 1)
    squared = np.rint(distance_transform_edt(padded)[1:-1, 1:-1] ** 2).astype(int)
    for row, col, _ in clicked:
        squared[row, col] = 0
    return squared


def first_deepest(squared: np.ndarray) -> tuple[int, int]:
    best, where = 0, (-1, -1)
    for row in range(squared.shape[0]):
        for col in range(squared.shape[1]):
            if squared[row, col] > best:
                best, where = int(squared[row, col]), (row, col)
    return where


def literal_iou(prediction: np.ndarray, truth: np.ndarray, void: np.ndarray) -> float:
    both = either = 0
    for predicted, true, ignored in zip(prediction.flat, truth.flat, void.flat, strict=True):
        if not ignored:
            both += predicted and true
            either += predicted or true
    return both / either


def literal(predict, sample: Sample, max_clicks: int, target: float) -> tuple[list[Position], list[float]]:
    """All clicks on one object, and the IoU after each."""
    truth = sample.mask
    void = np.zeros_like(truth) if sample.void is None else sample.void
    prediction = np.zeros_like(truth) if sample.init_mask is None else sample.init_mask
    clicks: list[Position] = []
    ious: list[float] = []
    for _ in range(max_clicks):
        missed = depths(truth & ~prediction & ~void, clicks)
        wrong = depths(prediction & ~truth & ~void, clicks)
        if missed.max() == 0 and wrong.max() == 0:
            break
        is_positive = bool(missed.max() > wrong.max())  # a tie is negative
        clicks.append((*first_deepest(missed if is_positive else wrong), is_positive))
        prediction = predict(clicks)
        ious.append(literal_iou(prediction, truth, void))
        if ious[-1] >= target:
            break
    return clicks, ious


def literal_noc(ious: list[float], target: float, max_clicks: int) -> int:
    for click, value in enumerate(ious):
        if value >= target:
            return click + 1
    return max_clicks


def random_object(seed: int) -> Sample:
    """An object of up to 40 x 40 pixels; two thirds have void, a quarter a mask to be corrected."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(6, 41, 2).tolist()
    mask = random_mask(rng, height, width)
    mask[rng.integers(height), rng.integers(width)] = True
    void = random_mask(rng, height, width) if seed % 3 else None
    if void is not None and not (mask & ~void).any():
        void &= ~mask
    init = random_mask(rng, height, width) if seed % 4 == 0 else None
    if init is not None and not ((init ^ mask) & (True if void is None else ~void)).any():
        init = None
    image = np.zeros((height, width, 3), np.uint8)
    return Sample(f"object {seed}", image, mask, void, init)


def noisy(sample: Sample, seed: int):
    """Predictions that depend on the number of clicks alone, and mostly come closer to the truth."""

    def predict(clicks) -> np.ndarray:
        rng = np.random.default_rng([seed, len(clicks)])
        other = random_mask(rng, *sample.mask.shape)
        return np.where(rng.random(sample.mask.shape) < rng.random() ** len(clicks), other, sample.mask)

    return predict


@pytest.mark.parametrize("block", range(10))
def test_clicks_and_ious_are_those_of_the_literal_protocol(block):
    for seed in range(20 * block, 20 * block + 20):
        sample = random_object(seed)
        predict = noisy(sample, seed)
        clicks, ious = literal(predict, sample, 20, 0.95)

        record = evaluate_object(lambda *_, predict=predict: predict, sample, 20, 0.95)
        assert [(each.row, each.col, each.is_positive) for each in record.clicks] == clicks, sample.name
        assert record.ious == pytest.approx(ious, abs=1e-12), sample.name
        figures = summarize([record], 20)
        assert figures.noc == {
            percent: literal_noc(ious, percent / 100, 20) for percent in (80, 85, 90, 95)
        }, sample.name


def test_the_objects_put_the_protocol_to_the_test():
    """Many clicks, of both signs, ends before and at the limit, void that matters."""
    found = [literal(noisy(random_object(seed), seed), random_object(seed), 20, 0.95) for seed in range(40)]
    signs = {sign for clicks, _ in found for _, _, sign in clicks}
    assert signs == {True, False}
    assert len({len(clicks) for clicks, _ in found}) >= 5
    assert sum(len(clicks) > 3 for clicks, _ in found) >= 10


SEEDS = st.integers(0, 10_000)


@given(seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_perfect_predictor_has_a_noc_of_one(seed):
    sample = random_object(seed)
    record = evaluate_object(lambda *_: lambda clicks: sample.mask, sample, 20, 0.95)
    assert record.ious == record.boundary_ious == (1.0,)
    assert set(summarize([record], 20).noc.values()) == {1}


@given(seed=SEEDS, max_clicks=st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_a_blind_predictor_has_a_noc_of_all_clicks_and_never_repeats_one(seed, max_clicks):
    sample = random_object(seed)
    blind = np.zeros_like(sample.mask)
    record = evaluate_object(lambda *_: lambda clicks: blind, sample, max_clicks, 0.8)
    figures = summarize([record], max_clicks)
    assert set(figures.noc.values()) == {max_clicks}
    assert set(figures.nof.values()) == {1}
    assert len(set(record.clicks)) == len(record.clicks)
    wrong = sample.mask if sample.void is None else sample.mask & ~sample.void
    # Fewer clicks than allowed only where every wrong pixel has one; one may be on an initial mask's.
    assert len(record.clicks) >= min(max_clicks, int(wrong.sum()))


@given(seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_ious_are_shares_and_the_run_stops_at_the_target(seed):
    sample = random_object(seed)
    record = evaluate_object(lambda *_: noisy(sample, seed), sample, 20, 0.9)
    assert all(0 <= value <= 1 for value in (*record.ious, *record.boundary_ious))
    assert all(value < 0.9 for value in record.ious[:-1])
    void = np.zeros_like(sample.mask) if sample.void is None else sample.void
    for click in record.clicks:
        assert not void[click.row, click.col]
        assert math.isfinite(click.row + click.col)


@given(order=st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_objects_does_not_matter(order):
    def open_image(image, *_):
        return lambda clicks: np.indices(image.shape[:2]).sum(0) < 7 * len(clicks)

    def by_name(records):
        return {each.name: (each.clicks, each.ious) for each in records}

    objects = [random_object(seed) for seed in range(12)]
    straight = evaluate(open_image, objects, 8)
    mixed = evaluate(open_image, [objects[number] for number in order], 8)
    assert by_name(straight) == by_name(mixed)
    one, other = summarize(straight, 8), summarize(mixed, 8)
    assert one.noc == other.noc
    assert one.nof == other.nof
    assert one.iou == pytest.approx(other.iou)
