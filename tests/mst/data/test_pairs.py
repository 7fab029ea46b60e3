import logging
import re
import zlib

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from mst.data.pixels.encode import annotate
from mst.data.pixels.mask_images import decode_labels, decode_mask
from mst.data.readers.pairs import read_pairs
from mst.data.sources import read_records
from mst.errors import DataError, ImageTooLargeError
from tests.conftest import png

HEIGHT, WIDTH = 20, 30


def square(top=5, left=8, side=6):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def grey(mask, value=255):
    return Image.fromarray(mask.astype(np.uint8) * value)


@pytest.fixture
def root(tmp_path):
    """A folder with one image, `a.jpg`, and no masks yet."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "images" / "a.jpg")
    return tmp_path


def test_an_annotation_gives_the_mask_back():
    found = annotate(square(), "here")
    np.testing.assert_array_equal(found.decode(), square())
    assert (found.name, found.height, found.width, found.area) == ("here", HEIGHT, WIDTH, 36)
    assert found.box == (5, 8, 11, 14)
    assert (found.parent, found.is_stuff) == (-1, False)


def test_each_file_is_an_object_and_a_photo_without_masks_has_none(root):
    Image.new("RGB", (7, 9)).save(root / "images" / "b.PNG")
    (root / "images" / ".DS_Store").write_bytes(b"")
    for i, name in enumerate(("a.png", "a_1.png", "a#two.png")):
        grey(square(top=i)).save(root / "masks" / name)
    first, second = read_pairs(root)
    assert [each.name for each in first.objects] == ["a#two.png", "a.png", "a_1.png"]
    np.testing.assert_array_equal(first.objects[1].decode(), square(top=0))
    assert first.read().shape == (HEIGHT, WIDTH, 3)
    assert (second.path.name, second.height, second.width, second.objects) == ("b.PNG", 9, 7, ())


def test_a_mask_named_like_an_image_is_of_that_image(root):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "a_1.jpg")
    for name in ("a_1.png", "a_2.png", "a_1_7.png"):
        grey(square()).save(root / "masks" / name)
    found = {each.path.stem: [mask.name for mask in each.objects] for each in read_pairs(root)}
    assert found == {"a": ["a_2.png"], "a_1": ["a_1.png", "a_1_7.png"]}


def test_an_empty_mask_is_left_out_with_a_warning(root, caplog):
    grey(square(side=10)).save(root / "masks" / "a_1.png")
    grey(np.zeros((HEIGHT, WIDTH), bool)).save(root / "masks" / "a_x.png")
    with caplog.at_level(logging.WARNING):
        records = read_records(["pairs:."], root)
    assert [each.name for each in records[0].objects] == ["a_1.png"]
    assert "a_x.png: the mask is empty" in caplog.text


def test_folders_inside_are_read_and_name_their_images(root):
    for folder in ("images", "masks"):
        (root / folder / "session1" / "left").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "session1" / "left" / "a.JPG", "JPEG")
    grey(square()).save(root / "masks" / "a.png")
    grey(square(top=1)).save(root / "masks" / "session1" / "left" / "a_1.png")
    first, second = read_pairs(root)
    assert first.path == root / "images" / "a.jpg"
    assert second.path == root / "images" / "session1" / "left" / "a.JPG"
    np.testing.assert_array_equal(second.objects[0].decode(), square(top=1))


def test_images_may_lie_elsewhere_and_in_a_store(root):
    grey(square()).save(root / "masks" / "a.png")
    store = UPath("memory://pairs")
    for folder in ("images", "masks"):
        for path in (root / folder).iterdir():
            copy = store / ("photos" if folder == "images" else folder) / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    (record,) = read_pairs(store, store / "photos")
    assert record.path == store / "photos" / "a.jpg"
    np.testing.assert_array_equal(record.objects[0].decode(), square())


def test_another_layout_is_refused(root):
    with pytest.raises(DataError, match=r"expected images .*; found 1 images and 0 masks"):
        read_pairs(root)
    with pytest.raises(DataError, match="found 0 images and 0 masks"):
        read_pairs(root / "nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("b.png", "no image named 'b'"),
        ("b_2.png", "no image named 'b'"),
        ("a_1_2.png", "no image named 'a_1'"),
        ("a.jpg", "a mask is a PNG file"),
    ],
)
def test_a_mask_of_no_image_is_left_out_and_named(root, name, message):
    grey(square()).save(root / "masks" / name)
    (problem,) = read_pairs(root).problems
    assert re.fullmatch(rf".*{name}: .*{message}.*", str(problem))
    with pytest.raises(DataError, match=rf"{name}: .*{message}"):
        read_records(["pairs:."], root)


def test_two_images_of_one_name_are_refused(root):
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images" / "a.png")
    grey(square()).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a.png: nobody can tell it from a.jpg"):
        read_pairs(root)


def test_of_masks_of_several_sizes_those_of_the_image_are_read(root):
    grey(square()).save(root / "masks" / "a_1.png")
    grey(square()[:, 1:]).save(root / "masks" / "a_2.png")
    records = read_pairs(root)
    assert [each.name for each in records[0].objects] == ["a_1.png"]
    assert str(records.problems[0]).endswith("a_2.png: 29 x 20 pixels, its image has 30 x 20")


def test_a_mask_of_another_size_than_its_image_is_refused_when_the_image_is_read(root):
    grey(square()[:, 1:]).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match="20 x 30 pixels, its annotation says 20 x 29"):
        read_pairs(root)[0].read()


def test_a_broken_mask_is_left_out_and_named(root):
    (root / "masks" / "a.png").write_bytes(png(np.zeros((50, 50, 3), np.uint8))[:-30])
    with pytest.raises(DataError, match=r"a.png: broken image"):
        read_records(["pairs:."], root)


def test_a_mask_that_can_mean_two_things_is_left_out_and_named(root):
    Image.fromarray(np.where(square(), np.uint8(7), np.uint8(9))).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match=r"mask that can mean two things, as .*a.png: it has the levels 7, 9"):
        read_records(["pairs:."], root)


@pytest.mark.parametrize("decode", [decode_labels, decode_mask])
@pytest.mark.parametrize("limit", [{"max_pixels": 599}, {}])
def test_a_huge_image_is_refused_before_it_is_decoded(decode, limit):
    data = bytearray(png(np.zeros((HEIGHT, WIDTH, 3), np.uint8)))
    if not limit:
        data[16:24] = (10**6).to_bytes(4) * 2  # the header's size; Pillow's own limit is met first
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    with pytest.raises(ImageTooLargeError, match=r"^here: "):
        decode(bytes(data), "here", **limit)


def test_labels_of_several_channels_are_refused():
    with pytest.raises(DataError, match="here: expected one label per pixel, found an image of mode RGB"):
        decode_labels(png(np.zeros((4, 4, 3), np.uint8)), "here")
