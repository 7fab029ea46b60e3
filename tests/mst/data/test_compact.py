"""A small data root: which image is where, and masks that fit the smaller photos."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from upath import UPath

from mst.data.compact import compact
from mst.data.index import Index
from mst.data.join import MIN_AREA
from mst.data.sources import read_records
from mst.errors import ConfigError, DataError

TRAIN, LVIS = "coco:annotations/instances_train.json", "lvis:annotations/lvis_train.json"
VAL = "coco:annotations/instances_val.json"


def made(scenes, out, sources=(TRAIN, LVIS), hold_out=VAL, **options):
    compact(list(sources), hold_out, UPath(scenes), out, processes=1, **options)
    return {name: Index(UPath(out) / name, UPath(out)) for name in ("train", "val")}


def place(record):
    """Of an image: its split and its name, which alone is in several splits."""
    return f"{record.path.parent.name}/{record.path.stem}"


def names(records):
    return {place(each) for each in records}


def test_every_other_image_is_held_out_and_none_is_in_both(scenes, tmp_path):
    parts = made(scenes, tmp_path / "out", every=2)
    of_val = sorted(names(read_records([VAL], UPath(scenes))))
    assert names(parts["val"]) == set(of_val[::2])
    assert names(parts["train"]) == names(read_records([TRAIN, LVIS], UPath(scenes))) | set(of_val[1::2])


def test_no_source_brings_back_what_is_held_out(scenes, tmp_path):
    """Though the finer annotation has images of the one that is held out too, as LVIS has of val2017."""
    parts = made(scenes, tmp_path / "out", sources=[LVIS], hold_out=TRAIN, every=3)
    assert not names(parts["train"]) & names(parts["val"])
    coco = {place(each): len(each.objects) for each in read_records([TRAIN], UPath(scenes))}
    assert {place(each): len(each.objects) for each in parts["val"]} == {
        each: coco[each] for each in names(parts["val"])
    }


def test_files_that_fit_are_copied(scenes, tmp_path):
    parts = made(scenes, tmp_path / "out")
    before = {place(each): each for each in read_records([TRAIN, LVIS], UPath(scenes))}
    for record in parts["train"]:
        assert (tmp_path / "out").resolve() in Path(str(record.path)).resolve().parents
        if place(record) in before:
            old = before[place(record)]
            assert record.path.read_bytes() == old.path.read_bytes()
            for one, other in zip(record.objects, old.objects, strict=True):
                np.testing.assert_array_equal(one.decode(), other.decode())


def test_larger_photos_and_their_masks_are_made_smaller(scenes, tmp_path):
    parts = made(scenes, tmp_path / "out", side=100, quality=80)
    before = {place(each): each for each in read_records([TRAIN, LVIS], UPath(scenes))}
    compared = 0
    for record in parts["train"]:
        assert max(record.read().shape) == 100
        for each in record.objects:
            assert each.decode().sum() >= MIN_AREA
            if place(record) in before:
                same = {old.name: old for old in before[place(record)].objects}[each.name]
                share = each.decode().mean() / same.decode().mean()
                assert 0.8 < share < 1.25
                compared += 1
    assert compared > 10


def test_photos_of_one_name_and_other_formats_stay_two(tmp_path):
    for folder in ("a/images", "a/masks", "b/images", "b/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for folder, name, level in (("a", "one.jpg", 50), ("b", "one.png", 90), ("b", "one_.jpg", 130)):
        photo = np.full((60, 80, 3), level, np.uint8)
        cv2.imwrite(str(tmp_path / folder / "images" / name), photo)
        mask = np.zeros((60, 80), np.uint8)
        mask[10:40, 10:50] = 255
        cv2.imwrite(str(tmp_path / folder / "masks" / f"{name.partition('.')[0]}.png"), mask)
    parts = made(tmp_path, tmp_path / "out", sources=["pairs:b"], hold_out="pairs:a", side=40)
    means = sorted(round(each.read().mean(), -1) for part in parts.values() for each in part)
    assert means == [50, 90, 130]
    assert [each.path.name for each in parts["train"]] == ["one.png.jpg", "one_.jpg"]


def test_what_goes_wrong_leaves_nothing(scenes, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        made(scenes, tmp_path / "out", sources=["labels:nothing"])
    with pytest.raises(ConfigError, match="hold out one that is not stuff"):
        made(scenes, tmp_path / "out", hold_out="panoptic:annotations/instances_val.json")
    root = tmp_path / "broken"
    for path in (f"annotations/instances_{split}.json" for split in ("train", "val")):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        tables = json.loads((scenes / path).read_bytes())
        (root / path).write_text(json.dumps(tables))
        for image in tables["images"]:
            photo = root / Path(path).stem.rpartition("_")[2] / image["file_name"]
            photo.parent.mkdir(exist_ok=True)
            photo.write_bytes(b"no photo")
    with pytest.raises(DataError, match="not an image"):
        made(root, tmp_path / "out", sources=[TRAIN])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broken"]
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        made(scenes, tmp_path / "out")
