"""Image files as they come in, upright and in RGB, and the stores that keep them."""

import hashlib
import io
import os
import time
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from mst.errors import ImageError, ImageTooLargeError
from serve.errors import OverloadedError
from serve.images import decode
from serve.store import BucketStore, FolderStore, open_store
from tests.conftest import picture


def image_file(image: Image.Image, form: str = "PNG", **more) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **more)
    return out.getvalue()


def test_an_image_is_turned_as_its_exif_says():
    upright = Image.fromarray(picture(0, 40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: a viewer turns it clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    found = decode(image_file(turned, exif=exif), 10_000)
    np.testing.assert_array_equal(found, np.asarray(upright))


def test_grey_palette_and_cmyk_become_rgb():
    grey = Image.fromarray(picture(0, 40, 60)[..., 0])
    np.testing.assert_array_equal(decode(image_file(grey), 10_000), np.asarray(grey.convert("RGB")))
    palette = Image.fromarray(picture(0, 40, 60)).convert("P")
    np.testing.assert_array_equal(decode(image_file(palette), 10_000), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(picture(0, 40, 60)).convert("CMYK")
    np.testing.assert_array_equal(decode(image_file(cmyk, "TIFF"), 10_000), np.asarray(cmyk.convert("RGB")))


def test_sixteen_bits_are_stretched_from_black_to_white():
    levels = np.linspace(1000, 5000, 40 * 60).astype(np.uint16).reshape(40, 60)
    found = decode(image_file(Image.fromarray(levels)), 10_000)
    assert (found[0, 0] == 0).all()
    assert (found[-1, -1] == 255).all()
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all()
    flat = decode(image_file(Image.fromarray(np.full((40, 60), 1000, np.uint16))), 10_000)
    assert (flat == 0).all()


def test_stretching_levels_of_any_kind_takes_little_memory():
    rng = np.random.default_rng(0)
    short = rng.integers(1000, 5000, (1200, 2000)).astype(np.uint16)
    exact = 2**30 + short.astype(np.int32)  # float32 has no such numbers
    real = short.astype(np.float32) - 2000
    real[5, 5], real[6, 6], real[7, 7] = np.nan, np.inf, -np.inf  # taken for 0
    expected = np.rint((short - short.min()) * (255 / (int(short.max()) - int(short.min()))))
    for levels in (short, exact, real):
        file = image_file(Image.fromarray(levels), "TIFF")
        tracemalloc.start()
        try:
            found = decode(file, 10_000_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        same = np.isfinite(levels)
        np.testing.assert_array_equal(found[same], np.repeat(expected[same][:, None], 3, 1))
        assert (found[~same] == expected[short == 2000][0]).all()
        assert peak < 12 * levels.size


def test_what_is_transparent_is_white():
    pixels = np.dstack([picture(0, 40, 60), np.full((40, 60), 255, np.uint8)])
    pixels[:20, :, 3] = 0
    found = decode(image_file(Image.fromarray(pixels)), 10_000)
    assert (found[:20] == 255).all()
    np.testing.assert_array_equal(found[20:], pixels[20:, :, :3])


def test_bombs_and_what_other_programs_would_open_are_refused():
    for side, said in ((12_000, "12000 x 12000"), (20_000, "400000000 pixels")):
        bomb = image_file(Image.new("1", (side, side)))
        assert len(bomb) < 100_000
        with pytest.raises(ImageTooLargeError, match=said):
            decode(bomb, 40_000_000)
    with pytest.raises(ImageError, match="not an image of a known format"):
        decode(image_file(Image.new("RGB", (4, 4)), "EPS"), 10_000)


# --- store


def test_both_stores_keep_images_and_sweep_what_is_old_or_too_much(tmp_path, s3):
    bucket = s3.upload(tmp_path / "nothing")
    for place in (str(tmp_path / "images"), f"{bucket}/images"):
        store = open_store(place, 3.0, 2500)
        assert store.sweep() == 0
        first, second = (store.put(bytes([number]) * 1000) for number in range(2))
        store.sweep()
        assert [store.get(each) for each in (first, second)] == [bytes([0]) * 1000, bytes([1]) * 1000]
        assert store.get("../" + first) is None
        assert store.get("0" * 64) is None
        time.sleep(1.1)  # S3 tells seconds
        assert store.put(bytes([0]) * 1000) == first
        third = store.put(bytes([2]) * 1000)
        store.sweep()
        assert store.get(second) is None  # the oldest, since the first was uploaded again
        assert store.get(first) is not None
        time.sleep(3.1)
        assert store.sweep() == 2
        assert store.get(third) is None
        assert store.sweep() == 0


def test_a_folder_is_swept_while_it_fills_and_of_what_a_killed_writer_left(tmp_path):
    store = FolderStore(tmp_path, 1000, 10_000)
    for number in range(100):
        store.put(number.to_bytes(1000, "big"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000 * 17 / 16
    (tmp_path / ".mst-left").write_bytes(b"half")
    os.utime(tmp_path / ".mst-left", (0, 0))
    store.sweep()
    assert not (tmp_path / ".mst-left").exists()


def test_a_folder_keeps_what_is_not_the_stores(tmp_path):
    photo, folder = tmp_path / "holiday.jpg", tmp_path / "lost+found"
    photo.write_bytes(b"mine")
    folder.mkdir()
    for path in (photo, folder):
        os.utime(path, (0, 0))
    assert FolderStore(tmp_path, 10, 1).sweep() == 0
    assert (photo.exists(), folder.exists()) == (True, True)


def test_a_folder_that_was_cleared_away_or_cannot_be_read_can_be_asked_again(tmp_path):
    store = FolderStore(tmp_path / "images", 10, 10_000)
    (tmp_path / "images").rmdir()
    assert store.sweep() == 0
    assert store.get(store.put(b"image")) == b"image"
    (tmp_path / "images" / hashlib.sha256(b"other").hexdigest()).mkdir()
    with pytest.raises(OverloadedError, match="the image store does not answer"):
        store.get(hashlib.sha256(b"other").hexdigest())


def test_a_bucket_that_is_away_is_a_reason_to_try_again(door):
    store = BucketStore(str(UPath("s3://nowhere/images")), 10, 10)
    with pytest.raises(OverloadedError, match="the image store does not answer"):
        store.put(b"image")


def test_the_store_knows_no_file_but_its_images(tmp_path):
    (tmp_path / "secret").write_text("secret")
    store = FolderStore(tmp_path / "images", 10, 1000)
    image_id = store.put(b"bytes")
    assert store.get(image_id) == b"bytes"
    assert [path.name for path in (tmp_path / "images").iterdir()] == [image_id]
    for wrong in ("../secret", "secret", "", image_id.upper(), image_id + "\n"):
        assert store.get(wrong) is None
