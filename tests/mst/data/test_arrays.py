"""Pixels and masks as callers have them: what is taken, what is refused by name, at every entrance."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mst.clicks import Click
from mst.client import Client, Retry
from mst.config import EvalConfig
from mst.data.pixels.arrays import as_image, as_mask
from mst.errors import ClickError, ImageError, MaskError
from mst.evaluation.peers import PEERS, open_nearest_features
from mst.model import MST
from mst.predictor import Predictor, start_from
from mst.zoom import Box
from tests.conftest import TINY_MODEL, picture, png
from tests.mst.data.test_images import turned

RGB = picture()
GREY = RGB[..., 0]
HEIGHT, WIDTH = RGB.shape[:2]
CLICK = [Click(20, 30, True)]
ALPHA = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)


def nowhere():
    """A client that must not come to asking."""
    return Client("http://127.0.0.1:1", retry=Retry(0))


def paths(tmp_path):
    (tmp_path / "a.png").write_bytes(png(RGB))
    return tmp_path / "a.png", str(tmp_path / "a.png")


def test_an_rgb_array_is_taken_as_it_is():
    assert as_image(RGB) is RGB


TAKEN = {
    "grey": (GREY, np.dstack([GREY] * 3)),
    "grey with an axis": (GREY[..., None], np.dstack([GREY] * 3)),
    "RGBA": (np.dstack([RGB, ALPHA]), RGB),
    "RGBA, transparent": (np.dstack([RGB, ALPHA * 0]), np.full_like(RGB, 255)),
    "Pillow": (Image.fromarray(RGB), RGB),
    "Pillow, grey": (Image.fromarray(GREY), np.dstack([GREY] * 3)),
    "Pillow, turned": (Image.open(io.BytesIO(turned(Image.fromarray(RGB), 6))), RGB),
    "bytes": (png(RGB), RGB),
    "mirrored view": (RGB[:, ::-1], np.ascontiguousarray(RGB[:, ::-1])),
    "BGR view": (RGB[..., ::-1], np.ascontiguousarray(RGB[..., ::-1])),
    "every other pixel": (RGB[::2, ::2], RGB[::2, ::2].copy()),
    "Fortran's order": (np.asfortranarray(RGB), RGB),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_has_one_meaning_is_taken(name):
    given, expected = TAKEN[name]
    np.testing.assert_array_equal(as_image(given), expected)


def test_paths_are_read(tmp_path):
    for path in paths(tmp_path):
        np.testing.assert_array_equal(as_image(path), RGB)
    with pytest.raises(ImageError, match=r"none.png: No such file"):
        as_image(tmp_path / "none.png")


@pytest.mark.parametrize(
    ("wrong", "said"), [("a\0.png", "NUL"), ("foo://b/a.png", "Unsupported filesystem: 'foo'")]
)
def test_paths_that_are_none_are_refused(wrong, said):
    for call in (as_image, nowhere().upload):
        with pytest.raises(ImageError, match=said):
            call(wrong)


def test_a_file_of_pillows_that_is_cut_short_is_refused():
    cut = Image.open(io.BytesIO(png(RGB)[:-4000]))
    with pytest.raises(ImageError, match=r"the image of Pillow: broken image"):
        as_image(cut)


REFUSED = {
    "float32 in 0..1": ((RGB / 255).astype(np.float32), r"of float32; .* as in `\(image \* 255\).round\(\)"),
    "float64 in 0..1": (RGB / 255, "of float64; give uint8 pixels"),
    "float in 0..255": (RGB.astype(np.float32), "of float32"),
    "int64": (RGB.astype(np.int64), "of int64; give uint8"),
    "uint16": (RGB.astype(np.uint16), "of uint16"),
    "bool": (RGB > 100, "of bool"),
    "channels first": (
        RGB.transpose(2, 0, 1),
        r"shape \(3, 90, 140\); .* as in `image.transpose\(1, 2",
    ),
    "a batch": (RGB[None], r"shape \(1, 90, 140, 3\)"),
    "two channels": (RGB[..., :2], r"shape \(90, 140, 2\)"),
    "empty": (RGB[:0], r"shape \(0, 140, 3\)"),
    "a row": (RGB[0, :, 0], r"shape \(140,\)"),
    "a tensor": (torch.from_numpy(RGB), "a torch.Tensor; give uint8 pixels"),
    "a list": (RGB.tolist(), "a list; give"),
    "None": (None, "a NoneType; give"),
    "other bytes": (b"hello", "not an image of a known format"),
}


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor(MST(TINY_MODEL), EvalConfig())


@pytest.fixture(scope="module")
def openings(predictor):
    """All methods that answer clicks on an image."""
    return [predictor.open, *PEERS.values(), open_nearest_features(predictor.model)]


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_none_or_two_is_refused_by_name_everywhere(name, predictor, openings):
    given, said = REFUSED[name]
    for call in (as_image, *openings):
        with pytest.raises(ImageError, match=said):
            call(given)
    with pytest.raises(ImageError, match=said):
        predictor.predict(given, CLICK)
    if not isinstance(given, bytes):  # a file is the server's to judge
        with pytest.raises(ImageError, match=said):
            nowhere().segment(given, CLICK)
        with pytest.raises(ImageError, match=said):
            nowhere().upload(given)


MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[10:40, 20:60] = True


@pytest.mark.parametrize(
    "mask", [MASK, MASK.astype(np.uint8), MASK.astype(np.uint8) * 255, MASK.astype(np.int64)]
)
def test_masks_of_two_values_are_one_mask(mask):
    np.testing.assert_array_equal(as_mask(mask), MASK)
    np.testing.assert_array_equal(start_from(mask).probabilities, MASK.astype(np.float32))


WRONG_MASKS = {
    "probabilities": (MASK * 0.7, "of float64; give a bool array .* as in `mask > 0.5`"),
    "float32 of 0 and 1": (MASK.astype(np.float32), "of float32"),
    "labels": (MASK.astype(np.uint8) * 7, r"values \[7\] beside 0"),
    "1 and 255": (np.where(MASK, 255, 1), r"values \[1, 255\] beside 0"),
    "negative": (-MASK.astype(np.int8), r"values \[-1\] beside 0"),
    "an axis more": (MASK[..., None], r"shape \(90, 140, 1\)"),
    "empty": (MASK[:0], r"shape \(0, 140\)"),
    "a list": (MASK.tolist(), "a list; give"),
    "a tensor": (torch.from_numpy(MASK), "a torch.Tensor; give"),
}


@pytest.mark.parametrize("name", WRONG_MASKS)
def test_other_masks_are_refused_by_name_everywhere(name, predictor):
    given, said = WRONG_MASKS[name]
    for call in (
        lambda: as_mask(given),
        lambda: start_from(given),
        lambda: predictor.open(RGB, given),
        lambda: nowhere().segment(RGB, CLICK, prior=given),
    ):
        with pytest.raises(MaskError, match=said):
            call()


def test_a_mask_of_another_size_is_refused(predictor):
    with pytest.raises(MaskError, match=r"shape \(45, 140\), its image \(90, 140\)"):
        predictor.open(RGB, MASK[:45])
    with pytest.raises(MaskError, match=r"shape \(45, 140\), the image \(90, 140\)"):
        predictor.predict(RGB, CLICK, start_from(MASK[:45]))


def test_every_form_gives_the_same_answer(predictor, local, tmp_path):
    client = Client(local)
    expected, served = predictor.open(RGB)(CLICK), client.segment(RGB, CLICK).mask
    for given in (Image.fromarray(RGB), png(RGB), np.dstack([RGB, ALPHA]), *paths(tmp_path)):
        np.testing.assert_array_equal(predictor.open(given)(CLICK), expected)
        np.testing.assert_array_equal(client.segment(given, CLICK).mask, served)
    corrected = predictor.open(RGB, MASK)(CLICK)
    np.testing.assert_array_equal(predictor.open(RGB, MASK.astype(np.uint8) * 255)(CLICK), corrected)
    priors = [client.segment(RGB, CLICK, prior=each).mask for each in (MASK, MASK.astype(np.uint8) * 255)]
    np.testing.assert_array_equal(*priors)


NUMPY_CLICKS = [
    Click(np.int64(20), np.int64(30), True),
    Click(np.float32(20), np.float32(30), True),
    Click(np.uint8(20), 30, np.bool_(True)),
]


@pytest.mark.parametrize("click", NUMPY_CLICKS, ids=str)
def test_numpys_numbers_are_clicks(click, predictor, local):
    np.testing.assert_array_equal(predictor.open(RGB)([click]), predictor.open(RGB)(CLICK))
    found = Client(local).segment(RGB, [click]).mask
    np.testing.assert_array_equal(found, Client(local).segment(RGB, CLICK).mask)


def test_numpys_numbers_are_boxes(local):
    expected = Client(local).segment(RGB, [], box=Box(5, 10, 60, 90)).mask
    np.testing.assert_array_equal(
        Client(local).segment(RGB, [], box=Box(*np.array([5, 10, 60, 90]))).mask, expected
    )
    with pytest.raises(ClickError, match="other values than whole numbers of pixels"):
        Client(local).segment(RGB, [], box=Box(5.5, 10, 60, 90))


WRONG_CLICKS = {
    "NaN": (Click(np.nan, 30, True), "row of a click is nan, not a number of pixels"),
    "infinite": (Click(20, np.float32(np.inf), True), "col of a click is .*inf"),
    "of hundreds of digits": (Click(10**400, 30, True), "row of a click is 1000"),
    "text": (Click("20", 30, True), "row of a click is '20'"),
    "a truth for a number": (Click(20, True, True), "col of a click is True"),
    "a text for a truth": (Click(20, 30, "False"), "is_positive of a click is 'False'"),
    "a number for a truth": (Click(20, 30, 2), "is_positive of a click is 2"),
    "a tuple": ((20, 30, True), r"\(20, 30, True\) is no Click"),
    "outside": (Click(90, 30, True), r"lies outside the image of 90 rows and 140 columns"),
}


@pytest.mark.parametrize("name", WRONG_CLICKS)
def test_what_is_no_click_is_refused_by_name(name, openings):
    click, said = WRONG_CLICKS[name]
    for call in (*(each(RGB) for each in openings), partial(nowhere().segment, RGB)):
        with pytest.raises(ClickError, match=said):
            call([click])


@pytest.mark.parametrize("clicks", [None, CLICK[0]], ids=str)
def test_what_is_no_list_of_clicks_is_refused(clicks, openings):
    for call in (*(each(RGB) for each in openings), partial(nowhere().segment, RGB)):
        with pytest.raises(ClickError, match="is no list of clicks, as in"):
            call(clicks)


def test_every_method_takes_every_form(openings):
    for each in openings:
        expected = each(RGB)(CLICK)
        for given in (Image.fromarray(RGB), np.dstack([RGB, ALPHA])):
            np.testing.assert_array_equal(each(given)(NUMPY_CLICKS[:1]), expected)
