"""Which of a user's photos teach, which judge, and what is said of the others."""

import json
import shutil

import cv2
import numpy as np
import pytest
from upath import UPath

from mst.data.sources import read_records
from mst.errors import ConfigError, DataError
from pipelines.adaptation.photos import HELD_OUT, LEAST_TO_JUDGE, TRAIN, count_of, keep_photos, read_photos
from tests.conftest import picture, png

NUMBER = 12
SQUARE = [1, 1, 41, 1, 41, 31, 1, 31]


@pytest.fixture
def root(tmp_path) -> UPath:
    """Photos with one object each."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(NUMBER):
        add(tmp_path, number)
    return UPath(tmp_path)


def add(root, number: int, name: str | None = None) -> None:
    mask = np.zeros((90, 140), np.uint8)
    mask[10:40, 20 + number : 60 + number] = 255
    (root / "images" / f"{name or number}.png").write_bytes(png(picture(number)))
    cv2.imwrite(str(root / "masks" / f"{name or number}.png"), mask)


def coco(images, objects) -> str:
    """An annotation file: images by name, height and width; objects by their image's place and polygon."""
    return json.dumps(
        {
            "images": [
                {"id": number, "file_name": name, "height": height, "width": width}
                for number, (name, height, width) in enumerate(images)
            ],
            "annotations": [
                {"id": number, "image_id": image, "category_id": 1, "segmentation": [polygon], "iscrowd": 0}
                for number, (image, polygon) in enumerate(objects)
            ],
            "categories": [{"id": 1, "name": "thing"}],
        }
    )


def names(records) -> list[str]:
    return [each.path.name for each in records]


def kinds(photos) -> dict[str, str]:
    return {each.kind: each.where for each in photos.problems}


def test_every_third_photo_judges_whatever_it_is_called(root):
    photos = read_photos(["pairs:."], [], root)
    assert (len(photos.train), len(photos.held_out)) == (8, 4)
    assert not {*names(photos.train)} & {*names(photos.held_out)}
    first = names(photos.held_out)
    for number in range(NUMBER):
        for folder in ("images", "masks"):
            (root / folder / f"{number}.png").rename(root / folder / f"renamed_{99 - number}.png")
    again = names(read_photos(["pairs:."], [], root).held_out)
    assert [99 - int(each.removeprefix("renamed_").removesuffix(".png")) for each in again] == [
        int(each.removesuffix(".png")) for each in first
    ]


def test_too_few_photos_to_judge_by_all_teach(root):
    for number in range(2 * LEAST_TO_JUDGE - 1, NUMBER):
        (root / "images" / f"{number}.png").unlink()
        (root / "masks" / f"{number}.png").unlink()
    photos = read_photos(["pairs:."], [], root)
    assert (len(photos.train), len(photos.held_out)) == (5, 0)


def test_what_is_left_out_is_named_and_counted(root):
    add(root, 3, "copy")
    images = [(f"{name}.png", 90, 140) for name in ("0", "1", "copy", "3", "gone", "broken", "2")]
    (root / "coco.json").write_text(coco(images, [(number, SQUARE) for number in range(6)]))
    (root / "images" / "broken.png").write_bytes(b"no image")
    photos = read_photos(["coco:coco.json?images=images"], [], root)
    assert sorted(names(photos.train)) == ["0.png", "1.png", "copy.png"]
    found = kinds(photos)
    assert found["photo that cannot be read"].endswith(("gone.png", "broken.png"))
    assert found["photo that is there already"].endswith("3.png")
    assert found["photo without objects"].endswith("2.png")
    lines = "\n".join(photos.lines())
    assert "learns from 3 photos with 3 objects" in lines
    assert "left out: 2 x photo that cannot be read" in lines


def test_no_photo_at_all_is_an_error_that_says_why(root):
    shutil.rmtree(root / "images")
    (root / "images").mkdir()
    (root / "coco.json").write_text(coco([("gone.png", 90, 140)], [(0, SQUARE)]))
    with pytest.raises(DataError, match=r"no photo with objects .*gone.png"):
        read_photos(["coco:coco.json?images=images"], [], root)


def test_of_ten_thousand_objects_of_a_photo_some_are_used(root):
    (root / "images" / "many.png").write_bytes(png(picture(0, 1000, 1000)))
    corners = [(10 * (number % 100), 10 * (number // 100)) for number in range(10_000)]
    squares = [[x, y, x + 9, y, x + 9, y + 9, x, y + 9] for x, y in corners]
    (root / "coco.json").write_text(coco([("many.png", 1000, 1000)], [(0, each) for each in squares]))
    photos = read_photos(["coco:coco.json?images=images"], [], root)
    assert len(photos.train[0].objects) == 300
    assert "photo with more than 300 objects, of which these are used" in kinds(photos)


def test_photos_that_are_given_to_judge_by_teach_nothing(root):
    for folder in ("images", "masks"):
        (root / "mine" / folder).mkdir(parents=True)
        for number in (2, 5):
            shutil.copy(root / folder / f"{number}.png", root / "mine" / folder)
    photos = read_photos(["pairs:."], ["pairs:mine"], root)
    assert sorted(names(photos.held_out)) == ["2.png", "5.png"]
    assert len(photos.train) == NUMBER - 2
    assert not {"2.png", "5.png"} & {*names(photos.train)}


def test_copies_are_a_data_root_which_is_of_these_photos_alone(root, tmp_path):
    photos = read_photos(["pairs:."], [], root)
    folder = tmp_path / "kept"
    keep_photos(photos, {"data": "a"}, folder)
    assert (count_of(folder, TRAIN), count_of(folder, HELD_OUT)) == (8, 4)
    shutil.rmtree(root / "images")
    kept = read_records([f"index:{TRAIN}"], UPath(folder))
    assert [each.read().shape for each in kept] == [(90, 140, 3)] * 8
    keep_photos(photos, {"data": "a"}, folder)  # there already: nothing is read
    with pytest.raises(ConfigError, match="other photos or another model"):
        keep_photos(photos, {"data": "b"}, folder)
