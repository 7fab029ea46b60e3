import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageOps
from upath import UPath

from mst.data.pixels.images import UPLOADED, decode_image, read_header, read_image, resize
from mst.data.pixels.mask_images import read_labels
from mst.errors import DataError, ImageError, ImageTooLargeError
from tests.conftest import picture


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


def turned(upright: Image.Image, orientation: int) -> bytes:
    """A file whose pixels are stored so that EXIF must turn them upright."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, "PNG", exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_upright_as_exif_says(orientation, tmp_path):
    data = turned(photo(), orientation)
    np.testing.assert_array_equal(decode_image(data), np.asarray(photo()))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode_image(data), np.asarray(ImageOps.exif_transpose(image)))
    (tmp_path / "a.png").write_bytes(data)
    header = read_header(UPath(tmp_path / "a.png"))
    assert (header.height, header.width, header.orientation) == (48, 64, orientation)
    assert header.stored == ((64, 48) if orientation > 4 else (48, 64))


def test_a_jpeg_is_turned_as_well():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode_image(encoded(photo(), exif=exif))
    np.testing.assert_array_equal(found, np.rot90(decode_image(encoded(photo())), -1))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode_image(encoded(photo(), exif=exif)).shape == (48, 64, 3)


def test_damaged_exif_turns_nothing():
    assert decode_image(encoded(photo(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).shape == (48, 64, 3)


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


def test_grey_palette_and_cmyk_become_rgb():
    grey = Image.fromarray(picture(0, 40, 60)[..., 0])
    np.testing.assert_array_equal(decode_image(encoded(grey, "PNG")), np.asarray(grey.convert("RGB")))
    palette = Image.fromarray(picture(0, 40, 60)).convert("P")
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(picture(0, 40, 60)).convert("CMYK")
    np.testing.assert_array_equal(decode_image(encoded(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))


def test_sixteen_bits_are_stretched_from_black_to_white():
    levels = np.linspace(1000, 5000, 40 * 60).astype(np.uint16).reshape(40, 60)
    found = decode_image(encoded(Image.fromarray(levels), "PNG"))
    assert (found[0, 0] == 0).all()
    assert (found[-1, -1] == 255).all()
    assert (np.diff(found[..., 0].ravel().astype(int)) >= 0).all()
    flat = decode_image(encoded(Image.fromarray(np.full((40, 60), 1000, np.uint16)), "PNG"))
    assert (flat == 0).all()


def test_stretching_levels_of_any_kind_takes_little_memory():
    rng = np.random.default_rng(0)
    short = rng.integers(1000, 5000, (1200, 2000)).astype(np.uint16)
    exact = 2**30 + short.astype(np.int32)  # float32 has no such numbers
    real = short.astype(np.float32) - 2000
    real[5, 5], real[6, 6], real[7, 7] = np.nan, np.inf, -np.inf  # taken for 0
    expected = np.rint((short - short.min()) * (255 / (int(short.max()) - int(short.min()))))
    for levels in (short, exact, real):
        file = encoded(Image.fromarray(levels), "TIFF")
        tracemalloc.start()
        try:
            found = decode_image(file)
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
    found = decode_image(encoded(Image.fromarray(pixels), "PNG"))
    assert (found[:20] == 255).all()
    np.testing.assert_array_equal(found[20:], pixels[20:, :, :3])


def test_bombs_and_what_other_programs_would_open_are_refused():
    for side, said in ((12_000, "12000 x 12000"), (20_000, "400000000 pixels")):
        bomb = encoded(Image.new("1", (side, side)), "PNG")
        assert len(bomb) < 100_000
        with pytest.raises(ImageTooLargeError, match=said):
            decode_image(bomb, max_pixels=40_000_000)
    with pytest.raises(ImageError, match="not an image of a known format"):
        decode_image(encoded(Image.new("RGB", (4, 4)), "EPS"), formats=UPLOADED)
