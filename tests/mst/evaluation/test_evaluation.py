import numpy as np
import pytest
from PIL import Image

from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.data.sources import SampleSet
from mst.errors import ImageError, MaskError, NothingToClickError, PredictionError
from mst.evaluation import evaluate, evaluate_object, summarize
from mst.evaluation.metrics import boundary_iou, iou, never_reached, number_of_clicks
from mst.evaluation.peers import open_click_disks
from mst.model import MST
from mst.predictor import Predictor
from mst.robot import next_click
from tests.conftest import TINY_MODEL, random_mask

IMAGE = np.zeros((40, 50, 3), np.uint8)


def samples(count=5):
    rng = np.random.default_rng(0)
    made = []
    while len(made) < count:
        mask = random_mask(rng)
        if mask.any():
            made.append(Sample(f"object {len(made)}", IMAGE, mask, random_mask(rng) & ~mask))
    return made


def answering(masks):
    """A method that answers the n-th click with the n-th mask."""
    return lambda image: lambda clicks: masks[len(clicks) - 1]


def test_iou_counts_no_void():
    truth, prediction = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    truth[:2], prediction[1:3] = True, True
    assert iou(prediction, truth) == pytest.approx(1 / 3)
    void = np.zeros((4, 4), bool)
    void[2] = True
    assert iou(prediction, truth, void) == pytest.approx(1 / 2)
    assert iou(truth & False, truth & False) == 1


def test_number_of_clicks_is_the_first_that_reaches_the_target():
    assert number_of_clicks([0.5, 0.85, 0.7, 0.9], 0.85, 20) == 2
    assert number_of_clicks([0.5, 0.6], 0.85, 20) == 20
    assert not never_reached([0.5, 0.85], 0.85)
    assert never_reached([0.5, 0.6], 0.85)


def test_a_perfect_method_needs_one_click():
    for sample in samples():
        record = evaluate_object(answering([sample.mask]), sample, 20, 0.95)
        assert (len(record.clicks), record.ious) == (1, (1.0,))


def test_a_blind_method_needs_all_clicks():
    sample = samples(1)[0]
    record = evaluate_object(answering([sample.mask & False] * 20), sample, 20, 0.9)
    summary = summarize([record], 20)
    assert summary.noc == {80: 20, 85: 20, 90: 20, 95: 20}
    assert summary.nof == {80: 1, 85: 1, 90: 1, 95: 1}


def test_clicks_follow_the_protocol_and_stop_at_the_target():
    sample = samples(1)[0]
    half = sample.mask.copy()
    half[:, 25:] = False
    record = evaluate_object(answering([sample.mask & False, half, sample.mask, half]), sample, 20, 0.9)
    first = next_click(half & False, sample.mask, sample.void)
    second = next_click(half & False, sample.mask, sample.void, [first])
    assert record.clicks == (first, second, next_click(half, sample.mask, sample.void, [first, second]))
    assert record.ious == (0.0, iou(half, sample.mask, sample.void), 1.0)
    assert record.boundary_ious == (0.0, boundary_iou(half, sample.mask, sample.void), 1.0)
    assert len(record.seconds_model) == len(record.seconds_total) == 3
    assert all(model < total for model, total in zip(record.seconds_model, record.seconds_total, strict=True))


def test_an_object_whose_errors_are_all_clicked_ends_early():
    mask = np.zeros((40, 50), bool)
    mask[3, 4] = True
    record = evaluate_object(answering([mask & False] * 20), Sample("dot", IMAGE, mask), 20, 0.9)
    assert record.clicks == (Click(3, 4, True),)
    assert summarize([record], 20).noc[90] == 20


def test_the_summary_averages_over_objects_and_holds_the_last_iou():
    quick = evaluate_object(answering([samples(1)[0].mask]), samples(1)[0], 4, 0.9)
    slow_sample = samples(2)[1]
    slow = evaluate_object(
        answering([slow_sample.mask & False, slow_sample.mask & False, slow_sample.mask]), slow_sample, 4, 0.9
    )
    summary = summarize([quick, slow], 4)
    assert summary.iou == (0.5, 0.5, 1.0, 1.0)
    assert summary.noc[90] == 2
    assert summary.nof[90] == 0
    assert summary.mean_iou == 0.75
    assert summary.metrics()["iou_at_2"] == 0.5


def test_the_order_of_objects_does_not_matter_and_each_is_announced():
    seen = []
    forward = evaluate(open_click_disks, samples(), 3, on_object=lambda record: seen.append(record.name))
    backward = evaluate(open_click_disks, samples()[::-1], 3)
    assert seen == [sample.name for sample in samples()]
    assert [(r.name, r.clicks, r.ious) for r in forward] == [
        (r.name, r.clicks, r.ious) for r in backward[::-1]
    ]


def test_disks_follow_the_nearest_click():
    mask = open_click_disks(IMAGE)([Click(20, 20, True), Click(20, 26, False)])
    assert mask[20, 20]
    assert mask[20, 22]
    assert not mask[20, 24]
    assert not mask[20, 13]
    assert mask[20, 15]


def test_a_sample_is_checked():
    nothing, everything = np.zeros((40, 50), bool), np.ones((40, 50), bool)
    with pytest.raises(NothingToClickError, match="a: the mask is empty"):
        Sample("a", IMAGE, nothing)
    with pytest.raises(NothingToClickError, match="a: the mask is void everywhere"):
        Sample("a", IMAGE, everything, everything)
    with pytest.raises(NothingToClickError, match="a: the initial mask is right already"):
        Sample("a", IMAGE, everything, init_mask=everything)
    with pytest.raises(MaskError, match=r"a, void: the mask has the shape \(2, 2\), its image \(40, 50\)"):
        Sample("a", IMAGE, everything, np.ones((2, 2), bool))
    with pytest.raises(MaskError, match=r"a, mask: the mask is of float64; .* as in `mask > 0.5`"):
        Sample("a", IMAGE, everything * 0.7)
    with pytest.raises(MaskError, match="a, mask: the mask is a NoneType; give"):
        Sample("a", IMAGE, None)
    with pytest.raises(ImageError, match=r"a, image: the image is of float64"):
        Sample("a", IMAGE / 255, everything)


def test_a_sample_is_the_same_in_every_form():
    mask = np.eye(40, 50, dtype=bool)
    given = Sample("a", Image.fromarray(IMAGE), mask.astype(np.uint8) * 255, init_mask=mask.astype(int) * 0)
    assert given.image.tolist() == IMAGE.tolist()
    assert given.mask.tolist() == mask.tolist()
    assert given.mask.dtype == given.init_mask.dtype == bool


def test_objects_without_a_pixel_to_click_on_are_named_and_not_averaged():
    def load(mask):
        return lambda: Sample("b", IMAGE, mask)

    whole = np.ones((40, 50), bool)
    readable = SampleSet([load(whole), load(whole & False), load(whole)])
    skipped: list[str] = []
    records = evaluate(answering([whole]), readable, 3, on_skipped=skipped.append)
    assert skipped == ["b: the mask is empty"]
    assert summarize(records, 3).objects == 2
    with pytest.raises(NothingToClickError, match="b: the mask is empty"):
        evaluate(answering([whole]), readable, 3)


def test_a_model_that_returns_nan_is_an_error_that_names_the_object():
    model = MST(TINY_MODEL)
    model.head.conv_seg.weight.data.fill_(float("nan"))
    with pytest.raises(PredictionError, match=r"object 0: after 1 clicks .* no numbers"):
        evaluate(Predictor(model, EvalConfig()).open, samples(1), 3)


def test_correction_starts_from_the_initial_mask():
    truth, init = np.zeros((2, 40, 50), bool)
    truth[10:30, 10:30], init[5:30, 10:45] = True, True
    sample = Sample("corrected", IMAGE, truth, init_mask=init, size_class="medium")
    opened = []

    def open_image(image, mask):
        opened.append(mask)
        return lambda clicks: truth

    record = evaluate_object(open_image, sample, 20, 0.9)
    assert opened == [init]
    assert record.clicks == (next_click(init, truth),)
    assert not record.clicks[0].is_positive
    assert record.init_iou == pytest.approx(iou(init, truth))
    assert (record.height, record.width, record.size_class) == (40, 50, "medium")
    assert record.area_share == pytest.approx(0.2)
