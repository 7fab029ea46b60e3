"""Objects of other images in training samples: what covers what, and what stays the same without them."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from mst.data.pixels.encode import annotate
from mst.data.sampling.copy_paste import Copy, choose_object, cut_out, leaves_enough
from mst.data.sampling.sampler import SampleKey
from mst.data.sampling.training_set import TrainingSet
from mst.data.sources import read_records
from mst.overrides import override
from tests.conftest import random_mask

SIZE = 64


@pytest.fixture
def records(config):
    return read_records(config.data.train, UPath(config.data.root))


def disk(height=90, width=120, radius=30):
    rows, cols = np.ogrid[:height, :width]
    return (rows - height / 2) ** 2 + (cols - width / 2) ** 2 < radius**2


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), height=st.integers(1, 90), width=st.integers(1, 90))
def test_a_copy_is_the_object_and_nothing_but_it(seed, height, width):
    """A red object on black: red where the mask is, the view where it is not, mixed on the border alone."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((100, 120), bool)
    top, left = rng.integers(0, 100 - height, endpoint=True), rng.integers(0, 120 - width, endpoint=True)
    mask[top : top + height, left : left + width] = True
    image = np.zeros((100, 120, 3), np.uint8)
    image[:] = 200, 0, 0  # around it too, so that its own border is no other colour
    view = np.full((SIZE, SIZE, 3), (0, 0, 100), np.uint8)
    copy = cut_out(image, annotate(mask, "object"), SIZE, 0.5, rng)
    covered = copy.covers(SIZE)
    pasted = copy.onto(view)
    assert (view == (0, 0, 100)).all()  # the view itself stays
    assert (pasted[..., 1] == 0).all()
    inside, outside = eroded(covered), eroded(~covered)
    assert (pasted[inside] == (200, 0, 0)).all()
    assert (pasted[outside] == (0, 0, 100)).all()
    mixed = pasted[~inside & ~outside].astype(int)
    assert (np.abs(mixed[:, 0] / 200 + mixed[:, 2] / 100 - 1) < 0.02).all()


def eroded(mask):
    """Without what has a neighbour, or the view's border, outside."""
    padded = np.pad(mask, 1)
    shifts = [(row, col) for row in (0, 1, 2) for col in (0, 1, 2)]
    return np.logical_and.reduce([padded[row : row + SIZE, col : col + SIZE] for row, col in shifts])


def test_a_copy_keeps_its_proportions_and_is_enlarged_twice_at_most():
    for seed in range(40):
        copy = cut_out(
            np.zeros((90, 120, 3), np.uint8),
            annotate(disk(radius=20), "disk"),
            448,
            0.0,
            np.random.default_rng(seed),
        )
        rows, cols = (np.flatnonzero(copy.mask.any(axis)) for axis in (1, 0))
        assert abs(np.ptp(rows) - np.ptp(cols)) <= 2
        assert np.ptp(rows) <= 80


def test_only_objects_that_are_worth_it_are_copied(records):
    small = annotate(disk(radius=5), "small")
    record = replace(records[0], height=90, width=120, objects=(small,))
    rng = np.random.default_rng(0)
    assert choose_object(record, rng) is None
    large = annotate(disk(), "large")
    assert choose_object(record.with_objects([small, large]), rng) is large
    assert choose_object(record.with_objects([replace(large, is_stuff=True)]), rng) is None


def test_an_object_is_left_alone_rather_than_hidden():
    target = np.zeros((10, 10), bool)
    target[:4] = True
    copy = np.zeros_like(target)
    copy[:, :4] = True
    assert leaves_enough(target, copy, 0.0)
    assert not leaves_enough(target, copy, 0.3)
    copy[:, :6] = True
    assert not leaves_enough(target, copy, 0.0)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), wanted=st.booleans())
def test_a_copy_is_the_object_or_covers_it(seed, wanted, records, config):
    training_set = TrainingSet(records, override(config, {"data.min_area": 0.01}))
    rng = np.random.default_rng(seed)
    side = config.model.image_size
    view = rng.integers(0, 256, (side, side, 3), np.uint8)
    target, others = (
        cv2.resize(random_mask(rng).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST) > 0
        for _ in range(2)
    )
    target &= wanted
    others &= ~target
    copy = training_set._copy(np.random.default_rng(seed))
    image, new_target, new_others = training_set._pasted(
        view, target, lambda: others, np.random.default_rng(seed)
    )
    if (image == view).all():  # nothing was pasted: no object for it there, or it would hide too much
        assert (new_target == target).all()
        assert copy is None or not leaves_enough(target, copy.covers(side), 0.01) or not copy.mask.any()
        return
    covered = copy.covers(side)
    np.testing.assert_array_equal(image, copy.onto(view))
    if wanted and (new_target == covered).all():
        assert covered.mean() >= 0.01
        np.testing.assert_array_equal(new_others() & ~covered, (target | others) & ~covered)
    else:
        np.testing.assert_array_equal(new_target, target & ~covered)
        np.testing.assert_array_equal(new_others(), others | covered)
        assert not target.any() or new_target.sum() >= target.sum() / 2


def test_copies_are_objects_and_others(records, config):
    """With its image's own object all over the view, a sample's object is the copy about every other time."""
    training_set = TrainingSet(records, config)
    view, target = np.zeros((SIZE, SIZE, 3), np.uint8), np.ones((SIZE, SIZE), bool)
    objects = [
        training_set._pasted(view, target, lambda: ~target, np.random.default_rng(seed))[1]
        for seed in range(200)
    ]
    assert 60 <= sum(each.mean() < 0.45 for each in objects) <= 140


def test_samples_with_copies_are_functions_of_their_key(records, config):
    config = override(config, {"data.copy_paste": 1, "data.blur": 0.5, "data.jpeg": 0.5, "data.grey": 0.5})
    for position in range(10):
        key = SampleKey(epoch=1, position=position, record=position)
        one, other = (TrainingSet(records, config)[key] for _ in range(2))
        for first, second in zip(one, other, strict=True):
            assert torch.equal(first, second)


def test_every_source_of_records_can_give_copies(records, config, tmp_path):
    """Masks as polygons (COCO) and as runs (an index, label maps) give the same copy."""
    annotation = records[0].objects[0]
    encoded = annotate(annotation.decode(), annotation.name)
    image = records[0].read()
    one, other = (
        cut_out(image, replace(each, measured=encoded.extent), SIZE, 0.5, np.random.default_rng(0))
        for each in (annotation, encoded)
    )
    assert isinstance(one, Copy)
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.mask, other.mask)


def test_a_broken_donor_is_replaced_and_counted(records, config, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(records[1].path.read_bytes()[:500])
    large = annotate(np.ones((records[1].height, records[1].width), bool), "all of it")
    damaged = [records[0], *(replace(each, path=broken, objects=(large,)) for each in records[1:])]
    config = override(config, {"data.copy_paste": 1, "data.crop_whole": 1.0, "data.background": 0.0})
    sample = TrainingSet(damaged, config)[SampleKey(0, 0, 0)]
    assert sample.skipped >= 1
    assert sample.mask.any()
