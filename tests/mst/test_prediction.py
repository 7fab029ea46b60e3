import numpy as np
import pytest
import torch

from mst import zoom
from mst.clicks import Click
from mst.config import EvalConfig
from mst.errors import ClickError, PredictionError
from mst.model import MST
from mst.predictor import Prediction, Predictor, forward, forwards_of_click, next_crop, paste, start_from
from mst.zoom import Box, box_iou
from tests.conftest import TINY_MODEL

CONFIG = EvalConfig()


def mask_of(top, left, bottom, right, shape=(100, 200)):
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def predicted(probabilities, clicks=(), box=None):
    return Prediction(tuple(clicks), probabilities.astype(np.float32), box, probabilities.shape)


def zoom_box(mask, clicks, previous, config):
    return zoom.zoom_box(predicted(mask).extent(0.5), mask.shape, clicks, previous, config)


def test_zoom_widens_the_objects_box():
    assert zoom_box(mask_of(40, 80, 60, 120), [Click(50, 100, True)], None, CONFIG) == Box(36, 72, 64, 128)


def test_zoom_holds_positive_clicks_and_the_smallest_side():
    mask = mask_of(50, 100, 52, 102)
    assert zoom_box(mask, [Click(50, 100, True)], None, CONFIG) == Box(41, 91, 61, 111)
    far = zoom_box(mask, [Click(50, 150, True), Click(90, 10, False)], None, CONFIG)
    assert far.contains(Click(50, 150, True))
    assert not far.contains(Click(90, 10, False))


def test_zoom_stays_inside_the_image_and_sees_all_where_nothing_is_predicted():
    assert zoom_box(mask_of(0, 0, 100, 150), [], None, CONFIG) == Box(0, 0, 100, 180)
    assert zoom_box(mask_of(0, 0, 0, 0), [Click(5, 5, True)], None, CONFIG) == Box(0, 0, 100, 200)


def test_the_last_zoom_is_kept_while_it_fits():
    clicks = [Click(50, 100, True)]
    mask = mask_of(40, 80, 60, 120)
    near = Box(30, 70, 70, 130)
    assert zoom_box(mask, clicks, near, CONFIG) == near
    assert zoom_box(mask, clicks, Box(0, 0, 100, 200), CONFIG) == Box(36, 72, 64, 128)  # far too wide
    outside = [*clicks, Click(71, 100, True)]
    assert zoom_box(mask, outside, near, CONFIG) != near


def test_box_iou():
    assert box_iou(Box(0, 0, 10, 10), Box(0, 5, 10, 15)) == pytest.approx(1 / 3)
    assert box_iou(Box(0, 0, 10, 10), Box(20, 20, 30, 30)) == 0


def image_and_model():
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    return image, Predictor(MST(TINY_MODEL), CONFIG)


def test_the_first_crop_is_the_whole_image_and_clicks_keep_their_pixel():
    image, _ = image_and_model()
    crop = next_crop(image, [Click(0, 129, True)], None, 56, CONFIG)
    assert crop.image.shape == (56, 56, 3)
    assert crop.box is None
    assert crop.prev_mask is None
    # Pixel centres at half a pixel: the corner pixel stays in the corner.
    assert crop.clicks[0].row == pytest.approx(0.5 * 56 / 90 - 0.5)
    assert crop.clicks[0].col == pytest.approx(56 - 0.5 * 56 / 130 - 0.5)


def test_a_zoomed_crop_shows_the_box_and_is_pasted_back_into_it():
    image, _ = image_and_model()
    probabilities = np.where(mask_of(20, 40, 50, 80, image.shape[:2]), 0.9, 0.1).astype(np.float32)
    clicks = [Click(30, 60, True), Click(10, 10, False)]
    previous = predicted(probabilities, clicks[:1])
    crop = next_crop(image, clicks, previous, 56, CONFIG)
    assert crop.box == Box(14, 32, 56, 88)
    assert crop.prev_mask.mean() == pytest.approx(probabilities[14:56, 32:88].mean(), abs=1e-3)
    pasted = paste(crop.box, np.ones((56, 56), np.float32), clicks, image.shape[:2])
    np.testing.assert_array_equal(pasted.mask(0.5), mask_of(14, 32, 56, 88, image.shape[:2]))


def test_what_is_seen_of_a_part_is_what_is_predicted_of_the_whole():
    rng, part = np.random.default_rng(0), Box(20, 40, 75, 150)
    whole = np.zeros((100, 200), np.float32)
    whole[part.slices()] = rng.random((part.height, part.width))
    found, expected = Prediction((), whole[part.slices()], part, whole.shape), predicted(whole)
    np.testing.assert_array_equal(found.probabilities, whole)
    for box in (Box(0, 0, 100, 200), part, Box(30, 0, 90, 60), Box(21, 41, 22, 149), Box(80, 0, 100, 30)):
        np.testing.assert_array_equal(found.within(box), whole[box.slices()])
    for threshold in (0.2, 0.998, 0.9999999):
        np.testing.assert_array_equal(found.mask(threshold), expected.mask(threshold))
        assert found.extent(threshold) == expected.extent(threshold)
        assert found.score(threshold) == pytest.approx(expected.score(threshold))
    assert found.extent(0.2) == part
    assert predicted(np.zeros((4, 4))).extent(0.5) is None


def test_a_zoom_on_the_whole_image_is_kept_like_any_other():
    mask = mask_of(14, 25, 86, 175)  # its box would leave a margin
    whole = Box(0, 0, 100, 200)
    assert zoom_box(mask, [Click(50, 100, True)], None, CONFIG) == whole
    smaller = mask_of(20, 40, 75, 150)
    assert zoom_box(smaller, [Click(50, 100, True)], whole, CONFIG) == whole
    assert zoom_box(smaller, [Click(50, 100, True)], None, CONFIG) != whole
    previous = predicted(smaller, box=whole)
    image = np.zeros((100, 200, 3), np.uint8)
    assert next_crop(image, [Click(50, 100, True)] * 2, previous, 56, CONFIG).box == whole


def test_without_zoom_every_crop_is_the_whole_image():
    image, _ = image_and_model()
    previous = predicted(mask_of(20, 40, 50, 80, image.shape[:2]))
    config = EvalConfig(zoom=False)
    assert next_crop(image, [Click(30, 60, True)], previous, 56, config).box is None


def test_going_on_equals_replaying():
    image, predictor = image_and_model()
    clicks = [Click(30, 60, True), Click(10, 10, False), Click(70, 100, True)]
    replayed = predictor.predict(image, clicks)
    step = None
    for number in range(1, 4):
        step = predictor.predict(image, clicks[:number], step)
    assert step.box == replayed.box
    np.testing.assert_array_equal(step.probabilities, replayed.probabilities)


def test_a_prediction_of_other_clicks_is_not_gone_on_with():
    image, predictor = image_and_model()
    other = predictor.predict(image, [Click(80, 10, True)])
    clicks = [Click(30, 60, True), Click(10, 10, False)]
    np.testing.assert_array_equal(
        predictor.predict(image, clicks, other).probabilities, predictor.predict(image, clicks).probabilities
    )


def test_undo_is_a_shorter_list():
    image, predictor = image_and_model()
    segment = predictor.open(image)
    first = segment([Click(30, 60, True)])
    segment([Click(30, 60, True), Click(70, 100, True)])
    np.testing.assert_array_equal(segment([Click(30, 60, True)]), first)


def test_clicks_without_a_positive_one_are_refused():
    image, predictor = image_and_model()
    with pytest.raises(ClickError, match="at least one positive"):
        predictor.predict(image, [Click(1, 1, False)])
    with pytest.raises(ClickError, match="outside"):
        predictor.predict(image, [Click(1, 130, True)])


def test_the_score_is_the_iou_that_the_probabilities_expect():
    rng = np.random.default_rng(0)
    probabilities = rng.random((200, 200)).astype(np.float32)
    prediction = predicted(probabilities)
    mask = prediction.mask(0.5)
    truths = [rng.random((200, 200)) < probabilities for _ in range(20)]
    ious = [(mask & truth).sum() / (mask | truth).sum() for truth in truths]
    assert prediction.score(0.5) == pytest.approx(np.mean(ious), abs=0.01)
    assert predicted(np.zeros((4, 4))).score(0.5) == 0


def test_prediction_leaves_training_mode():
    model = MST(TINY_MODEL).train()
    assert not Predictor(model, CONFIG).model.training


def test_a_mask_to_be_corrected_is_the_first_previous_mask_and_takes_a_negative_click():
    image, predictor = image_and_model()
    mask, clicks = mask_of(20, 40, 50, 80, image.shape[:2]), [Click(30, 60, False), Click(70, 100, True)]
    first = next_crop(image, clicks[:1], start_from(mask), 56, CONFIG)
    assert first.box is None  # zoom begins with the second click
    assert first.prev_mask.sum() == pytest.approx(mask.mean() * 56 * 56, rel=0.01)
    segment = predictor.open(image, mask)
    answers = [segment(clicks[:1]), segment(clicks), segment(clicks[:1])]
    np.testing.assert_array_equal(answers[0], answers[2])
    step = predictor.predict(image, clicks[:1], start_from(mask))
    np.testing.assert_array_equal(step.mask(CONFIG.threshold), answers[0])
    np.testing.assert_array_equal(predictor.predict(image, clicks, step).mask(CONFIG.threshold), answers[1])


def test_flipping_averages_the_image_and_its_mirror():
    image, predictor = image_and_model()
    crop = next_crop(image, [Click(30, 20, True)], None, 56, CONFIG)
    mirrored = next_crop(image[:, ::-1], [Click(30, 109, True)], None, 56, CONFIG)
    flipped, one = (forward(predictor.model, [crop], flip=flip)[0] for flip in (True, False))
    other = forward(predictor.model, [mirrored])[0][:, ::-1]
    np.testing.assert_allclose(flipped, (one + other) / 2, atol=1e-3)
    assert np.abs(flipped - one).max() > 1e-2
    symmetric = np.concatenate([image, image[:, ::-1]], 1)
    answer = Predictor(predictor.model, CONFIG, flip=True).predict(symmetric, [Click(30, 129.5, True)])
    np.testing.assert_allclose(answer.probabilities, answer.probabilities[:, ::-1], atol=1e-5)


def test_a_cascade_answers_the_same_clicks_again_with_the_new_mask():
    image, predictor = image_and_model()
    clicks = [Click(30, 60, True)]
    expected = predictor.predict(image, clicks)
    for _ in range(2):
        crop = next_crop(image, clicks, expected, 56, CONFIG)
        expected = paste(crop.box, forward(predictor.model, [crop])[0], clicks, image.shape[:2])
    config = CONFIG.model_copy(update={"cascade": 2})
    found = Predictor(predictor.model, config).predict(image, clicks)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert found.box is None  # zoom begins with the second click


def test_a_first_click_can_be_looked_at_again_closer():
    image, predictor = image_and_model()
    clicks = [Click(30, 60, True), Click(10, 10, False)]
    config = CONFIG.model_copy(update={"zoom_first": True})
    first = predictor.predict(image, clicks[:1])
    crop = next_crop(image, clicks[:1], first, 56, config)
    assert crop.box == zoom_box(first.mask(CONFIG.threshold), clicks[:1], None, CONFIG)
    closer = paste(crop.box, forward(predictor.model, [crop])[0], clicks[:1], image.shape[:2])
    patient = Predictor(predictor.model, config)
    np.testing.assert_array_equal(patient.predict(image, clicks[:1]).probabilities, closer.probabilities)
    then = predictor.predict(image, clicks, closer)
    np.testing.assert_array_equal(patient.predict(image, clicks).probabilities, then.probabilities)


def test_a_small_crop_has_a_small_input_after_a_first_click():
    image, clicks = image_and_model()[0], [Click(30, 60, True)]
    model = MST(TINY_MODEL.model_copy(update={"patch_sizes": (4,)}))
    config = CONFIG.model_copy(update={"zoom_first": True, "zoom_sides": (24, 40)})
    first = next_crop(image, clicks, None, 56, config)
    assert (first.side, first.box) == (56, None)
    for half, side in ((8, 24), (11, 40), (18, 56)):
        found = mask_of(30 - half, 60 - half, 30 + half, 60 + half, image.shape[:2])
        before = predicted(found, clicks)
        closer = next_crop(image, clicks, before, 56, config, first)
        assert closer.box is not None
        assert (closer.side, closer.image.shape) == (side, (side, side, 3))
        assert max(closer.box.height, closer.box.width) <= side or side == 56
        assert next_crop(image, [*clicks, Click(31, 61, True)], before, 56, config).side == 56
    answer = paste(first.box, forward(model.eval(), [first])[0], clicks, image.shape[:2])
    closer = next_crop(image, clicks, answer, 56, config)
    answer = paste(closer.box, forward(model, [closer])[0], clicks, image.shape[:2])
    found = Predictor(model, config).predict(image, clicks).probabilities
    np.testing.assert_array_equal(found, answer.probabilities)


def test_how_many_forwards_a_click_takes():
    mask = start_from(mask_of(20, 40, 50, 80, (100, 200)))
    second = predicted(mask.probabilities, [Click(30, 60, True)])
    config = EvalConfig(zoom_first=True, cascade=2)
    assert [forwards_of_click(each, config) for each in (None, mask, second)] == [4, 4, 3]
    assert forwards_of_click(None, EvalConfig(zoom=False, zoom_first=True)) == 1
    assert forwards_of_click(None, EvalConfig()) == 1


def test_probabilities_that_are_no_numbers_are_refused():
    image, _ = image_and_model()
    crop = next_crop(image, [Click(1, 1, True)], None, 56, CONFIG)
    with pytest.raises(PredictionError, match="after 1 clicks"):
        paste(crop.box, np.full((56, 56), np.nan, np.float32), [Click(1, 1, True)], image.shape[:2])
