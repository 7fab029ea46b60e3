"""Listing folders: one rule for suffixes, case, subfolders and doubles, for every reader."""

import logging

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from mst.data.readers.folders import list_files
from mst.data.sources import read_records, read_samples
from mst.errors import DataError

HEIGHT, WIDTH = 40, 60


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(path)


def labels(path, value=1, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:25, 10:30] = value
    Image.fromarray(mask).save(path, **options)


def test_names_are_paths_without_suffix_and_what_is_passed_over_is_counted(tmp_path, caplog):
    touch(
        tmp_path,
        "b.JPG",
        "a.b.png",
        "in/side/c.TIFF",
        "notes.txt",
        "Thumbs.db",
        "._b.jpg",
        ".git/x.png",
        "README",
    )
    with caplog.at_level(logging.WARNING):
        listing = list_files(UPath(tmp_path))
    assert {name: path.name for name, path in listing.files.items()} == {
        "a.b": "a.b.png",
        "b": "b.JPG",
        "in/side/c": "c.TIFF",
    }
    (problem,) = listing.passed_over
    assert problem.detail == "5 files: 2 hidden, 1 no suffix, 1 .db, 1 .txt"
    assert "5 files: 2 hidden" in caplog.text


@pytest.mark.parametrize("other", ["a.jpg", "a.PNG", "a.jpeg"])
def test_two_files_of_one_name_are_refused(tmp_path, other):
    touch(tmp_path, "a.png", other)
    with pytest.raises(DataError, match=r"nobody can tell it from a\.(png|PNG|jpe?g); rename one"):
        list_files(UPath(tmp_path))


def test_the_same_name_in_two_folders_is_another_name(tmp_path):
    touch(tmp_path, "one/a.png", "two/a.png")
    assert list(list_files(UPath(tmp_path)).files) == ["one/a", "two/a"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    assert list_files(UPath(tmp_path / "none")).files == {}


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "photos", "a.png")
    touch(tmp_path / "elsewhere", "b.png")
    (tmp_path / "photos" / "back").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos" / "other").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list(list_files(UPath(tmp_path / "photos")).files) == ["a", "other/b"]


def test_label_maps_take_photos_alone_and_capitals(tmp_path):
    """labelme leaves ID.json beside ID.jpg."""
    photo(tmp_path / "bsds" / "images" / "7.jpg")
    photo(tmp_path / "bsds" / "images" / "day" / "8.jpg")
    touch(tmp_path / "bsds" / "images", "7.json")
    labels(tmp_path / "bsds" / "regions" / "7_0.PNG", format="PNG")
    labels(tmp_path / "bsds" / "regions" / "day" / "8_0.png")
    records = read_records(["labels:bsds"], UPath(tmp_path))
    assert [record.path.name for record in records] == ["7.jpg", "8.jpg"]
    assert [len(record.objects) for record in records] == [1, 1]


def test_an_empty_label_map_is_told_and_the_others_are_read(tmp_path):
    for number in ("7", "8"):
        photo(tmp_path / "bsds" / "images" / f"{number}.jpg")
        labels(tmp_path / "bsds" / "regions" / f"{number}_0.png", value=int(number == "7"))
    records = read_records(["labels:bsds"], UPath(tmp_path))
    assert [(record.path.name, len(record.objects)) for record in records] == [("7.jpg", 1), ("8.jpg", 0)]
    assert [each.kind for each in records.problems] == ["label map without a region"]


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".webp", ".PNG", ".gif"])
def test_evaluation_folders_take_every_kind_of_image(tmp_path, suffix):
    photo(tmp_path / "set" / "images" / f"a{suffix}")
    labels(tmp_path / "set" / "masks" / "a.png", value=255)
    (sample,) = read_samples(["berkeley:set"], UPath(tmp_path))
    assert sample.mask.sum() == 400


def test_evaluation_folders_refuse_two_files_of_one_name(tmp_path):
    photo(tmp_path / "set" / "images" / "a.jpg")
    photo(tmp_path / "set" / "images" / "a.png")
    labels(tmp_path / "set" / "masks" / "a.png", value=255)
    with pytest.raises(DataError, match=r"a\.png: nobody can tell it from a\.jpg"):
        read_samples(["berkeley:set"], UPath(tmp_path))
