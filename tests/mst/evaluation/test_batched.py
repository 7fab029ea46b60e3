"""Several objects at once are evaluated as one after another."""

import gc
import weakref

import cv2
import numpy as np
import pytest
import torch

from mst.checkpoint import load_model
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.data.sources import SampleSet
from mst.errors import NothingToClickError, PredictionError
from mst.evaluation import evaluate
from mst.evaluation.batched import evaluate_batched
from mst.model import MST
from mst.predictor import Predictor
from tests.conftest import TINY_MODEL, picture, random_mask, without_times

CONFIG = EvalConfig()
CLICKS = 6


def a_sample(number: int) -> Sample:
    """An object on an image of its own size; some have void, some a mask to correct."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(30, 140, 2).tolist()
    image = cv2.GaussianBlur(picture(number, height, width), (0, 0), 3)
    mask = random_mask(rng, height, width)
    mask[height // 2, width // 2] = True
    void = random_mask(rng, height, width) & ~mask if number % 3 == 0 else None
    init = np.roll(mask, 3, axis=1) if number % 4 == 0 else None
    return Sample(f"object {number}", image, mask, void, init)


def samples(count: int = 24) -> SampleSet:
    return SampleSet([lambda number=number: a_sample(number) for number in range(count)])


@pytest.fixture(scope="module")
def model(checkpoint) -> MST:
    return load_model(checkpoint)[0]


@pytest.mark.parametrize(
    ("count", "flip", "change"),
    [(24, False, {}), (5, True, {"cascade": 1}), (9, False, {"zoom_first": True, "zoom_sides": (24,)})],
)
def test_a_batch_gives_the_records_of_one_by_one(model, count, flip, change):
    config = CONFIG.model_copy(update=change)
    if config.zoom_sides:
        torch.manual_seed(0)
        model = MST(TINY_MODEL.model_copy(update={"patch_sizes": (4,)}))
    announced: list[str] = []
    targets = (0.3,)  # random weights seldom do better
    found = evaluate_batched(
        model,
        samples(count),
        config,
        CLICKS,
        targets,
        4,
        lambda each: announced.append(each.name),
        flip=flip,
    )
    expected = evaluate(Predictor(model, config, flip=flip).open, samples(count), CLICKS, targets)
    assert [each.name for each in found.records] == [f"object {number}" for number in range(count)]
    assert sorted(announced) == sorted(each.name for each in expected)
    pairs = zip(without_times(found.records), without_times(expected), found.close_pixels, strict=True)
    differing = [close for batched, alone, close in pairs if batched != alone]
    assert all(differing), "an object differs although rounding can have moved none of its pixels"
    assert len(differing) <= 2
    assert len({len(each.clicks) for each in expected}) > 1, "objects end at different clicks"
    for each in found.records:
        assert len(each.seconds_model) == len(each.ious)
        assert all(a < b for a, b in zip(each.seconds_model, each.seconds_total, strict=True))


@pytest.mark.parametrize(("rounding", "share"), [(0.0, 0), (2.0, 1)])
def test_pixels_that_rounding_may_move_are_counted_over_all_clicks(model, rounding, share, monkeypatch):
    monkeypatch.setattr("mst.evaluation.batched.ROUNDING", rounding)
    config = CONFIG.model_copy(update={"zoom": False})  # so that all pixels are seen each time
    found = evaluate_batched(model, samples(3), config, CLICKS, (0.9,), 2)
    pixels = [each.height * each.width * len(each.clicks) for each in found.records]
    assert found.close_pixels == [share * each for each in pixels]


def test_no_more_images_than_the_batch_are_in_memory(model):
    read: list[weakref.ref[Sample]] = []
    most = 0

    def reading():
        nonlocal most
        for number in range(8):
            gc.collect()
            most = max(most, sum(each() is not None for each in read))
            sample = a_sample(number)
            read.append(weakref.ref(sample))
            yield sample

    evaluate_batched(model, reading(), CONFIG, 2, batch_size=3)
    assert most <= 3


def test_objects_without_a_click_are_named_here_too(model):
    def empty() -> Sample:
        return Sample("empty", picture(), np.zeros((90, 140), bool))

    loaders = [*samples(1).loaders, empty, *samples(2).loaders]
    skipped: list[str] = []
    found = evaluate_batched(model, SampleSet(loaders), CONFIG, 2, on_skipped=skipped.append)
    assert skipped == ["empty: the mask is empty"]
    assert [each.name for each in found.records] == ["object 0", "object 0", "object 1"]
    with pytest.raises(NothingToClickError):
        evaluate_batched(model, SampleSet(loaders), CONFIG, 2)


def test_nan_names_the_object():
    broken = MST(TINY_MODEL)
    broken.head.conv_seg.weight.data.fill_(float("nan"))
    with pytest.raises(PredictionError, match="object 0: after 1 clicks"):
        evaluate_batched(broken, samples(2), CONFIG, 2)


def test_encodings_are_timed_as_a_part_of_the_clicks_that_needed_them():
    late = MST(TINY_MODEL.model_copy(update={"click_entry": 2, "fusion_stages": 1}))
    found = evaluate_batched(late, samples(3), EvalConfig(zoom=False), CLICKS, (0.99,), 1).records
    for each in found:
        assert 0 < each.seconds_opening == each.seconds_encoding[0] < each.seconds_model[0]
        assert each.seconds_encoding[1:] == (0.0,) * (len(each.ious) - 1)  # the image is known by then
    paper = evaluate_batched(MST(TINY_MODEL), samples(1), EvalConfig(), 1, (0.99,), 1).records
    assert (paper[0].seconds_encoding, paper[0].seconds_opening) == ((), 0.0)
