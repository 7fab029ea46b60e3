from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mst.config import DataConfig
from mst.data.annotations import ObjectAnnotation
from mst.data.pixels.runs import Runs
from mst.data.sampling.augment import View, choose_view, degrade, recolour
from mst.data.sampling.sampler import SampleKey, Shard, ShardedBatches, epoch_order
from mst.data.sampling.training_set import TrainingSet
from mst.data.sources import SampleSet, read_records
from mst.errors import DataError, TrainingError
from mst.overrides import override
from mst.training import fit, new_state


def runs(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return Runs.parse(encoded["counts"], *mask.shape)


@pytest.fixture
def records(config):
    return read_records(config.data.train, Path(config.data.root))


def test_a_view_cuts_resizes_pads_and_mirrors():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 10:] = 200
    right_half = View((0, 10, 10, 20), size=5, flip=False).of_image(image)
    assert right_half.shape == (5, 5, 3)
    assert (right_half == 200).all()
    beyond = View((-10, 0, 10, 20), size=20, flip=False).of_image(image)
    assert (beyond[:10] == 0).all()
    assert (beyond[10:, 10:] == 200).all()
    mirrored = View((0, 0, 10, 20), size=10, flip=True).of_masks([runs(image[..., 0] > 0)], 10, 20)
    np.testing.assert_array_equal(mirrored[0], [True] * 5 + [False] * 5)


@pytest.mark.parametrize("share", ["crop_whole", "crop_object"])
def test_views_lie_where_their_kind_says(share):
    config = DataConfig(**{share: 1.0})
    rng = np.random.default_rng(0)
    for _ in range(20):
        view, subject = choose_view(100, 200, [(40, 80, 60, 120)], 64, config, rng)
        if share == "crop_whole":
            assert view.box == (0, 0, 100, 200)
            assert subject is None
        else:
            assert view.box[0] <= 40
            assert view.box[1] <= 80
            assert view.box[2] >= 60
            assert view.box[3] >= 120
            assert subject == 0


def test_a_view_around_an_object_is_a_sample_of_that_object(records, config):
    settings = {"data.crop_object": 1.0, "data.background": 0.0, "data.merge": 0.0, "data.min_area": 0.0}
    training_set = TrainingSet(records, override(config, settings))
    record = next(each for each in records if len(each.objects) > 1)
    boxes, size = [each.box for each in record.objects], config.model.image_size
    subjects = set()
    for seed in range(20):
        drawn = training_set._draw(record, np.random.default_rng(seed))
        assert drawn is not None
        rng = np.random.default_rng(seed)
        rng.random()  # whether stuff counts: there is none here
        view, subject = choose_view(record.height, record.width, boxes, size, training_set._config.data, rng)
        assert subject is not None
        mask = view.of_masks([record.objects[subject].runs()], record.height, record.width)
        np.testing.assert_array_equal(drawn[1], mask)
        subjects.add(subject)
    assert len(subjects) > 1


def test_random_crops_scale_with_the_image_size():
    config = DataConfig(resize=(1.0, 1.0))
    for size in (112, 448):
        view, _ = choose_view(480, 640, [], size, config, np.random.default_rng(0))
        assert view.box[2] - view.box[0] == 448


def test_the_share_of_a_view_that_a_box_covers():
    view = View((-10, 20, 10, 40), size=5, flip=False)
    assert view.share((0, 30, 50, 50)) == 0.25
    assert view.share((-10, 20, 10, 40)) == 1
    assert view.share((10, 20, 30, 40)) == 0


@pytest.mark.parametrize(("stuff", "seen"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_stuff_is_an_object_as_often_as_is_asked(records, config, stuff, seen):
    only_stuff = [
        record.with_objects([replace(each, is_stuff=True) for each in record.objects]) for record in records
    ]
    settings = {"data.stuff": stuff, "data.background": 0.0, "data.min_area": 0.0, "data.crop_whole": 1.0}
    training_set = TrainingSet(only_stuff, override(config, settings))
    drawn = [training_set._draw(only_stuff[0], np.random.default_rng(seed)) for seed in range(20)]
    assert {each is not None for each in drawn} == seen


@pytest.mark.parametrize(("parts", "seen"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})])
def test_a_part_is_an_object_as_often_as_is_asked(records, config, parts, seen):
    only_parts = [
        record.with_objects([replace(each, parent=0) for each in record.objects]) for record in records
    ]
    settings = {"data.parts": parts, "data.background": 0.0, "data.min_area": 0.0, "data.crop_whole": 1.0}
    training_set = TrainingSet(only_parts, override(config, settings))
    drawn = [training_set._draw(only_parts[0], np.random.default_rng(seed)) for seed in range(20)]
    assert {each is not None for each in drawn} == seen


def test_the_object_and_the_others_are_those_of_the_view(records, config):
    """Against masks that are decoded, cut and united one by one."""
    settings = {"data.background": 0.0, "data.merge": 0.5, "data.min_area": 0.01}
    training_set = TrainingSet(records, override(config, settings))
    for seed in range(30):
        record = records[seed % len(records)]
        drawn = training_set._draw(record, np.random.default_rng(seed))
        if drawn is None:
            continue
        _, target, others = drawn[0], drawn[1], drawn[2]() & ~drawn[1]
        rng = np.random.default_rng(seed)
        rng.random()  # whether stuff counts: there is none here
        boxes = [each.box for each in record.objects]
        size = config.model.image_size
        view, _ = choose_view(record.height, record.width, boxes, size, training_set._config.data, rng)
        shape = (record.height, record.width)
        masks = [view.of_masks([each.runs()], *shape) for each in record.objects if view.shows(each.box)]
        everything = np.logical_or.reduce(masks)
        assert target.any()
        assert not (target & others).any()
        assert any((target & mask).sum() == mask.sum() > 0 for mask in masks)
        # The union is cut after it is made: borders between objects may gain a pixel.
        assert ((target | others) ^ everything).mean() < 0.01


def test_recolouring_stays_in_range_and_does_nothing_when_switched_off():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    changed = recolour(image, DataConfig(brightness=1.0, contrast=1.0), np.random.default_rng(1))
    assert changed.dtype == np.uint8
    assert (changed != image).any()
    off = DataConfig(brightness=0, contrast=0, rgb_shift=0)
    np.testing.assert_array_equal(recolour(image, off, np.random.default_rng(1)), image)


def test_what_is_switched_off_draws_nothing():
    """So that the same seed gives the same sample as before there was such a setting."""
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    rng, beside = np.random.default_rng(1), np.random.default_rng(1)
    recolour(image, DataConfig(), rng)
    beside.uniform(size=2)
    beside.integers(-10, 11, size=3)
    assert degrade(image, DataConfig(), rng) is image
    assert rng.random() == beside.random()


PLAIN = {"brightness": 0, "contrast": 0, "rgb_shift": 0}


def luma(image):
    return image @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("change", [{"hue": 40}, {"saturation": 0.5}, {"grey": 1.0}])
def test_colours_change_and_luma_stays(change):
    image = np.random.default_rng(0).integers(80, 176, (8, 8, 3), np.uint8)  # nothing reaches 0 or 255
    image[0] = 120
    changed = recolour(image, DataConfig(**PLAIN, **change), np.random.default_rng(1))
    assert (changed[0] == 120).all()
    assert np.abs(changed[1:].astype(int) - image[1:]).max() > 5
    assert np.abs(luma(changed) - luma(image)).max() <= 1
    assert (np.ptp(changed, axis=2).max() == 0) == ("grey" in change)


def test_hues_turn_by_their_angle():
    image = np.random.default_rng(0).integers(100, 156, (20, 20, 3), np.uint8)
    changed = recolour(image, DataConfig(**PLAIN, hue=30), np.random.default_rng(1)).astype(float)
    red, green, blue = np.moveaxis(np.stack([image.astype(float), changed]), -1, 0)
    angle = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
    turned = np.rad2deg((angle[1] - angle[0] + np.pi) % (2 * np.pi) - np.pi)
    expected = np.random.default_rng(1)
    expected.uniform(size=2)
    expected.integers(0, 1, size=3)
    expected.uniform()
    assert abs(np.median(turned) - expected.uniform(-30, 30)) < 1


def test_blur_and_jpeg_take_away_detail():
    image = np.random.default_rng(0).integers(0, 256, (448, 448, 3), np.uint8)
    for change in ({"blur": 1.0}, {"jpeg": 1.0}):
        changed = degrade(image, DataConfig(**change), np.random.default_rng(3))
        assert (changed.shape, changed.dtype) == (image.shape, np.uint8)
        assert changed.std() < image.std() - 1
        assert np.abs(changed.mean((0, 1)) - image.mean((0, 1))).max() < 8


def test_fixed_views_come_again_with_other_clicks(config, records):
    config = override(config, {"data.fixed_views": 3 * len(records)})
    training_set = TrainingSet(records, config)
    assert len(training_set) == 3 * len(records)  # more views than images
    views = [training_set[SampleKey(0, each, each)] for each in range(len(training_set))]
    again = [training_set[SampleKey(1, 7 * each, each)] for each in range(len(training_set))]
    assert all(
        torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask)
        for a, b in zip(views, again, strict=True)
    )
    assert any(not torch.equal(a.clicks, b.clicks) for a, b in zip(views, again, strict=True))
    assert len({each.image.numpy().tobytes() for each in views}) == len(views)


def test_the_same_key_gives_the_same_sample(records, config):
    key = SampleKey(epoch=3, position=5, record=1)
    one, other = (TrainingSet(records, config)[key] for _ in range(2))
    for first, second in zip(one, other, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.image, TrainingSet(records, config)[key._replace(epoch=4)].image)


def test_a_sample_has_the_shapes_that_a_batch_documents(records, config):
    sample = TrainingSet(records, config)[SampleKey(0, 0, 0)]
    assert (sample.image.shape, sample.image.dtype) == ((3, 56, 56), torch.uint8)
    assert sample.mask.shape == (1, 56, 56)
    assert set(sample.mask.unique().tolist()) <= {0.0, 1.0}
    assert sample.clicks.shape == (2 * 3 + 1, 3)


def test_positive_clicks_lie_on_the_mask(records, config):
    training_set = TrainingSet(records, config)
    for position in range(30):
        sample = training_set[SampleKey(0, position, position % len(records))]
        for row, col, label in sample.clicks.tolist():
            if label != -1:
                assert sample.mask[0, int(row), int(col)] == label


def test_a_broken_image_is_replaced_and_counted(records, config, tmp_path, caplog):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(records[0].path.read_bytes()[:500])
    damaged = [replace(records[0], path=broken), *records[1:]]
    config = override(config, {"data.crop_whole": 1.0, "data.background": 0.0})
    sample = TrainingSet(damaged, config)[SampleKey(0, 0, 0)]
    assert sample.skipped >= 1
    assert sample.mask.any()
    assert "left out of training" in caplog.text
    assert "broken.jpg" in caplog.text


def test_a_set_without_usable_objects_says_so(records, config):
    config = override(config, {"data.min_area": 1.0, "data.background": 0.0, "data.crop_whole": 1.0})
    with pytest.raises(DataError, match=r"1000 images in a row gave no object .* lower data.min_area"):
        TrainingSet(records, config)[SampleKey(0, 0, 0)]


def test_background_samples_have_no_object(records, config):
    config = override(config, {"data.background": 1.0})
    sample = TrainingSet(records, config)[SampleKey(0, 0, 0)]
    assert not sample.mask.any()
    assert not (sample.clicks[:, 2] == 1).any()


def test_every_image_is_drawn_once_before_any_is_drawn_again():
    order = epoch_order(num_records=10, samples=25, seed=0, epoch=0)
    assert sorted(order[:10]) == list(range(10))
    assert sorted(order[10:20]) == list(range(10))
    assert order == epoch_order(10, 25, 0, 0)
    assert order != epoch_order(10, 25, 0, 1)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_workers_share_each_step_whatever_their_number(world_size):
    def batches(shard):
        return list(ShardedBatches(10, 24, 8, micro_batches=world_size, seed=0, epoch=2, shard=shard))

    whole = list(ShardedBatches(10, 24, 8, micro_batches=1, seed=0, epoch=2, shard=Shard()))
    parts = [batches(Shard(rank, world_size)) for rank in range(world_size)]
    assert len(whole) == 3
    for step, keys in enumerate(whole):
        shared = [key for part in parts for key in part[step]]
        assert sorted(shared) == sorted(keys)


@pytest.mark.parametrize("first", [0, 1, 3, 4])
def test_an_epoch_goes_on_at_the_exact_batch(first):
    arguments = {"micro_batches": 2, "seed": 0, "epoch": 2, "shard": Shard(1, 2)}
    whole = ShardedBatches(10, 24, 8, **arguments)
    rest = ShardedBatches(10, 24, 8, **arguments, first=first)
    assert list(rest) == list(whole)[first:]
    assert len(rest) == max(0, 3 - first)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_micro_batches_are_the_same_whoever_reads_them(world_size):
    parts = {}
    for rank in range(world_size):
        batches = ShardedBatches(10, 24, 8, micro_batches=4, seed=0, epoch=2, shard=Shard(rank, world_size))
        numbers = [(step, number) for step in range(3) for number in batches.mine]
        parts.update(zip(numbers, batches, strict=True))
    alone = ShardedBatches(10, 24, 8, micro_batches=4, seed=0, epoch=2, shard=Shard())
    assert [parts[step, number] for step in range(3) for number in range(4)] == list(alone)


def test_a_batch_that_cannot_be_shared_is_refused():
    arguments = {"seed": 0, "epoch": 0, "shard": Shard(0, 3)}
    with pytest.raises(ValueError, match="batch_size 8 is no multiple of the 3 micro-batches"):
        ShardedBatches(10, 24, 8, micro_batches=3, **arguments)
    with pytest.raises(ValueError, match="2 micro-batches are too few for 3 workers"):
        ShardedBatches(10, 24, 8, micro_batches=2, **arguments)


def test_samples_are_drawn_from_images_that_have_objects(records, config):
    """5 of 100 images show an object, as in the inspection of products."""
    empty = [record.with_objects([]) for record in records] * 8
    few = [*empty[:40], *records[:5], *empty[40:95]]
    training_set = TrainingSet(few, config)
    assert training_set.without_objects == len(few) - 5
    assert str(training_set) == f"5 images; {len(few) - 5} others have no objects and are not drawn"
    wanted = {str(record.path) for record in records[:5]}
    order = epoch_order(len(training_set), 2 * len(few), 0, 0)
    names = [training_set.name(SampleKey(0, i, record)) for i, record in enumerate(order)]
    assert set(names) == wanted
    assert max(map(names.count, wanted)) < 2 * min(map(names.count, wanted))
    for position, record in enumerate(order):
        assert training_set[SampleKey(0, position, record)].skipped == 0


def test_images_with_objects_are_drawn_as_without_the_others(records, config):
    key = SampleKey(1, 7, 3)
    alone = TrainingSet(records, config)[key]
    beside = TrainingSet([*records, *(record.with_objects([]) for record in records)], config)[key]
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))


def test_data_without_any_object_are_refused(records, config):
    with pytest.raises(DataError, match="none of 12 images has an object to train on"):
        TrainingSet([record.with_objects([]) for record in records], config)


def test_a_wrong_annotation_is_replaced_counted_and_named(records, config, caplog):
    """What no reader can know: the image has another size, or an index was damaged."""
    damaged = ObjectAnnotation({"size": [256, 192], "counts": b"no RLE"}, 256, 192, "index:7")
    first = replace(records[0], width=records[0].width + 1)
    second = replace(records[1], objects=(replace(damaged, measured=records[1].objects[0].extent),))
    config = override(config, {"data.crop_whole": 1.0, "data.background": 0.0})
    training_set = TrainingSet([first, second, *records[2:]], config)
    for place, name in enumerate((str(first.path), "index:7")):
        sample = training_set[SampleKey(0, 0, place)]
        assert sample.skipped >= 1
        assert sample.mask.any()
        assert f"left out of training: {name}: " in caplog.text


def test_a_training_ends_where_wrong_images_are_no_exception(records, config):
    config = override(config, {"train.samples_per_epoch": "400", "train.batch_size": "8"})
    damaged = [replace(record, width=record.width + 1) for record in records[:6]] + list(records[6:])
    state, _ = new_state(config, torch.device("cpu"))
    steps = fit(config, state, TrainingSet(damaged, config), SampleSet([]), Shard())
    with pytest.raises(
        TrainingError, match=r"\d+ of \d+ images that were drawn cannot be used, and at most 10%"
    ):
        list(steps)
    assert 100 <= state.step * 8 + 8 < 120
