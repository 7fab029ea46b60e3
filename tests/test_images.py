import io

import numpy as np
import pytest
from PIL import Image

from mst.data.images import decode_image, read_image, resize
from mst.data.mask_images import read_labels
from mst.errors import DataError, ImageError, ImageTooLargeError


def encoded(image: Image.Image, form="JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def photo(width=64, height=48) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_a_truncated_jpeg_is_broken_not_grey():
    data = encoded(photo())
    assert decode_image(data).shape == (48, 64, 3)
    with pytest.raises(ImageError, match=r"x.jpg: broken image"):
        decode_image(data[: len(data) // 2], name="x.jpg")


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
def test_other_bytes_are_no_image(data):
    with pytest.raises(ImageError):
        decode_image(data)


def test_too_many_pixels_are_refused_before_decoding():
    bomb = encoded(Image.new("1", (20000, 20000)), "PNG")
    assert len(bomb) < 100_000
    with pytest.raises(ImageTooLargeError, match=r"20000 x 20000|decompression bomb"):
        decode_image(bomb, max_pixels=10**6)
    with pytest.raises(ImageTooLargeError, match="64 x 48 pixels; at most 100 are accepted"):
        decode_image(encoded(photo()), max_pixels=100)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(mode):
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert decode_image(encoded(photo().convert(mode), form)).shape == (48, 64, 3)


def test_orientation_is_followed_only_on_request():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = encoded(photo(), exif=exif)
    assert decode_image(data).shape == (48, 64, 3)
    assert decode_image(data, upright=True).shape == (64, 48, 3)


def test_missing_files_and_colour_labels_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"none.png: No such file"):
        read_image(tmp_path / "none.png")
    photo().save(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"colour.png: expected one label per pixel"):
        read_labels(tmp_path / "colour.png")


def test_resizing_averages_where_it_shrinks():
    checks = np.indices((8, 8)).sum(0) % 2 * 200.0
    np.testing.assert_allclose(resize(checks, 4, 4), 100)
    assert resize(checks, 8, 8) is checks
