"""The one rule for masks as image files: what is object in each form that tools write; what is refused."""

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mst.data.pixels.mask_images import decode_mask
from mst.errors import ClickError, MaskError
from serve.wire.encoding import decode_png

HEIGHT, WIDTH = 40, 60
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[5:25, 10:40] = True
MASK[10:15, 15:20] = False  # a hole


def grey(value=255, background=0, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(np.where(MASK, dtype(value), dtype(background)))


def palette(*colours: tuple[int, int, int], label=1, background=0) -> Image.Image:
    """Labels with a palette, of which the first colours are given."""
    image = grey(label, background).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([level for colour in colours for level in colour])
    return image


def colour(shown, background=(0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.where(MASK[..., None], np.uint8(shown), np.uint8(background)))


def transparent(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image = image.convert("RGB")
    image.putalpha(alpha)
    return image


def quantized() -> Image.Image:
    return grey().convert("RGB").quantize(2)


def keyed() -> bytes:
    """A palette of which one colour is transparent."""
    out = io.BytesIO()
    palette((255, 0, 0), (0, 255, 0)).save(out, "PNG", transparency=0)
    return out.getvalue()


def file(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (255, 0, 0)
FULL = Image.new("L", (WIDTH, HEIGHT), 255)
SOFT = grey().filter(ImageFilter.GaussianBlur(1))

FORMS = {
    "0 and 255": file(grey()),
    "0 and 1": file(grey(1)),
    "one bit": file(grey().convert("1")),
    "16 bits, 0 and 300": file(grey(300, dtype=np.uint16)),
    "16 bits, 0 and 1": file(grey(1, dtype=np.uint16)),
    "16 bits, 0 and 65535": file(grey(65535, dtype=np.uint16)),
    "palette, black first": file(palette(BLACK, WHITE)),
    "palette, white first": file(palette(WHITE, BLACK, label=0, background=1)),
    "palette of labelme and VOC": file(palette(BLACK, (128, 0, 0))),
    "palette, a later label": file(palette(BLACK, RED, (0, 128, 0), label=2)),
    "palette of one bit": file(palette(BLACK, WHITE), bits=1),
    "quantized": file(quantized()),
    "palette, a transparent colour": keyed(),
    "red on black": file(colour(RED)),
    "white on black": file(colour(WHITE)),
    "nearly black on black": file(colour((0, 0, 1))),
    "RGBA, opaque": file(transparent(colour(RED), FULL)),
    "RGBA, white, alpha is the mask": file(transparent(FULL, grey())),
    "RGBA, black, alpha is the mask": file(transparent(FULL.point(lambda _: 0), grey())),
    "RGBA, red on transparent white": file(transparent(colour(RED, WHITE), grey())),
    "RGBA, red on transparent black": file(transparent(colour(RED), grey())),
    "grey and alpha": file(Image.merge("LA", [grey(3), FULL])),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_object_is_found_in_every_form(form):
    np.testing.assert_array_equal(decode_mask(FORMS[form], "here"), MASK)
    corrected = decode_png(base64.b64encode(FORMS[form]).decode(), HEIGHT, WIDTH)  # by the server
    np.testing.assert_array_equal(corrected, MASK)


def test_soft_edges_are_cut_at_the_half():
    expected = np.asarray(SOFT) >= 128
    np.testing.assert_array_equal(decode_mask(file(SOFT), "here"), expected)
    np.testing.assert_array_equal(decode_mask(file(transparent(FULL, SOFT)), "here"), expected)
    assert (expected != MASK).mean() < 0.02


def test_a_mask_of_one_colour_is_empty_or_full():
    assert not decode_mask(file(grey(0)), "here").any()
    assert decode_mask(file(FULL), "here").all()
    assert not decode_mask(file(transparent(FULL, grey(0))), "here").any()


def test_a_mask_is_turned_as_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode_mask(file(grey(), exif=exif), "here"), np.rot90(MASK, -1))


DIAGONAL = np.eye(HEIGHT, WIDTH, dtype=np.uint8)
MANY = (np.arange(HEIGHT * WIDTH) % 20).astype(np.uint8).reshape(HEIGHT, WIDTH)
TWO_MEANINGS = {
    "two labels, none of them 0": file(grey(1, 2)),
    "white and grey": file(grey(255, 128)),
    "three labels": file(Image.fromarray(np.where(MASK, np.uint8(1), DIAGONAL * 2))),
    "trimap": file(Image.fromarray(np.where(MASK, np.uint8(255), DIAGONAL * 128))),
    "many labels": file(Image.fromarray(MANY)),
    "red on white": file(colour(RED, WHITE)),
    "red and green on black": file(Image.merge("RGB", [grey(), Image.fromarray(DIAGONAL), grey(0)])),
    "palette of one colour": file(palette(BLACK, BLACK)),
    "a black object that shows on transparent white": file(transparent(colour(BLACK, WHITE), grey())),
}


@pytest.mark.parametrize("form", TWO_MEANINGS)
def test_what_can_mean_two_things_is_refused_with_what_would_be_right(form):
    with pytest.raises(MaskError, match=r"^here: .*; save it with a black background and the object in one"):
        decode_mask(TWO_MEANINGS[form], "here")
    with pytest.raises(ClickError, match=r"the mask: .* save it with a black background"):
        decode_png(base64.b64encode(TWO_MEANINGS[form]).decode(), HEIGHT, WIDTH)
