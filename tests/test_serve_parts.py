"""The parts of the server, one by one, without Ray."""

import asyncio
import hashlib
import io
import os
import threading
import time
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import label
from upath import UPath

from mst.checkpoint import load_model, save_checkpoint
from mst.clicks import Click
from mst.config import Config
from mst.errors import CheckpointError, ClickError, ConfigError, ImageError, ImageTooLargeError
from mst.model import MST
from mst.predictor import next_crop, to_probabilities
from mst.zoom import Box
from serve.batching import Batcher
from serve.cache import ByteLRU
from serve.core import few_at_once
from serve.encoding import decode_png, decode_rle, png, polygons, rle, text
from serve.errors import OverloadedError
from serve.images import decode
from serve.keys import Keys, is_loopback, read_keys
from serve.load import Load
from serve.model import SLOTS, ServedModel
from serve.schemas import RLE
from serve.session import start_of
from serve.settings import ServeSettings
from serve.store import BucketStore, FolderStore, open_store
from tests.conftest import TINY_MODEL, picture, random_mask

# --- images


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


# --- masks


def random_masks(count: int):
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = rng.random((rng.integers(1, 60), rng.integers(1, 60))) > rng.random()
        yield random_mask(rng) if number % 2 else noise


def test_rle_is_cocos_both_ways():
    for mask in random_masks(200):
        encoded = rle(mask)
        np.testing.assert_array_equal(coco_mask.decode(encoded.model_dump()).astype(bool), mask)
        np.testing.assert_array_equal(decode_rle(encoded, *mask.shape), mask)
    large = np.zeros((3000, 2000), bool)
    large[100:2900, 1999] = large[5, 5] = True
    np.testing.assert_array_equal(decode_rle(rle(large), 3000, 2000), large)


@pytest.mark.parametrize(
    "counts",
    ["", "0", "P", "PPPPPPPPPPPP1", "~~~", "\u00e9", "oooooooooooo1", "`l20", "99999999", "\x00", "P" * 1351],
)
def test_counts_that_do_not_fill_the_mask_are_refused(counts):
    with pytest.raises(ClickError, match="do not add up to 30 x 40"):
        decode_rle(RLE(size=(30, 40), counts=counts), 30, 40)


def test_counts_of_more_letters_than_any_mask_needs_are_refused():
    rng = np.random.default_rng(0)
    for runs in (np.ones(400), np.tile([1, 17], 200), rng.integers(1, 40, 300), rng.integers(1, 2000, 20)):
        mask = np.repeat(np.arange(len(runs)) % 2 == 0, runs.astype(int))[
            None
        ]  # the first run is of length 0
        encoded = rle(mask)
        assert len(encoded.counts) <= 1 + mask.size * 9 // 8
        np.testing.assert_array_equal(decode_rle(encoded, *mask.shape), mask)
    with pytest.raises(ClickError, match="have 9999 letters; 30 x 40 pixels need at most 1351"):
        decode_rle(RLE(size=(30, 40), counts="4" * 9999), 30, 40)


def test_as_many_counts_as_a_large_image_may_have_are_decoded_in_little_memory():
    mask = np.tile([True, False], 2_000_000).reshape(2000, 2000).T
    encoded = rle(mask)
    assert len(encoded.counts) > 4_000_000
    tracemalloc.start()
    try:
        decoded = decode_rle(encoded, *mask.shape)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(decoded, mask)
    assert peak < 6 * mask.size


def test_a_mask_of_another_size_is_refused():
    mask = np.ones((30, 40), bool)
    with pytest.raises(ClickError, match=r"size \[30, 40\], the image \[40, 30\]"):
        decode_rle(rle(mask), 40, 30)
    np.testing.assert_array_equal(decode_png(text(png(mask)), 30, 40), mask)
    for wrong in (text(png(mask.T)), text(png(np.ones((60, 80), bool))), "?", "\u00e9", text(b"no image")):
        with pytest.raises(ClickError, match="mask"):
            decode_png(wrong, 30, 40)


def test_simplified_polygons_stay_within_their_error():
    rows, cols = np.ogrid[:200, :300]
    mask = ((rows - 100) ** 2 + (cols - 150) ** 2 < 80**2) & ((rows - 100) ** 2 + (cols - 150) ** 2 > 30**2)
    mask[3, 3] = mask[100, 80] = True
    mask[60, 150] = False  # specks: a part of one pixel and a hole of one
    exact, simple = polygons(mask), polygons(mask, tolerance=1.0, min_area=8)
    assert (len(exact), len(simple)) == (2, 1)
    (ring,) = simple
    assert (len(exact[1].holes) + len(exact[0].holes), len(ring.holes)) == (2, 1)
    assert len(ring.outer) < 40 < min(len(each.outer) for each in exact if each.holes)
    found = np.zeros(mask.shape, bool)
    for points in (ring.outer, *ring.holes):
        flat = [coordinate for point in points for coordinate in point]
        found ^= coco_mask.decode(coco_mask.frPyObjects([flat], *mask.shape)[0]).astype(bool)
    wrong = found != mask
    wrong[3, 3] = wrong[60, 150] = False
    near = np.abs(np.sqrt((rows - 100) ** 2 + (cols - 150) ** 2)[..., None] - [80, 30]).min(-1) < 2.5
    assert not (wrong & ~near).any()


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 3), (1, 15), (2, 2), (4, 5)])
def test_the_least_area_is_in_pixels_of_parts_and_of_holes(rows, cols):
    part = np.zeros((20, 30), bool)
    part[4 : 4 + rows, 6 : 6 + cols] = True
    hole = np.ones((20, 30), bool)
    hole[4 : 4 + rows, 6 : 6 + cols] = False
    for least, is_kept in ((rows * cols, True), (rows * cols + 0.5, False)):
        assert len(polygons(part, min_area=least)) == is_kept
        assert len(polygons(hole, min_area=least)[0].holes) == is_kept


def test_parts_within_holes_and_diagonal_ones_are_measured_as_they_are():
    rng, seen = np.random.default_rng(0), 0
    for _ in range(100):
        mask = np.pad(rng.random(rng.integers(1, 30, 2)) > rng.uniform(0.2, 0.8), 1)
        parts, holes = (label(each, near)[0] for each, near in ((mask, np.ones((3, 3))), (~mask, None)))
        sizes = [np.unique(each, return_counts=True)[1] for each in (parts[mask], holes[holes > 1])]
        for least in (2, 3, 5, 9):
            found = polygons(mask, min_area=least)
            assert len(found) == (sizes[0] >= least).sum()
            if (sizes[0] >= least).all():  # the holes of a part that is left out go with it
                assert sum(len(each.holes) for each in found) == (sizes[1] >= least).sum()
                seen += len(sizes[1]) > 0
    assert seen > 20


def test_a_box_is_a_click_on_its_centre_and_clicks_beyond_its_corners():
    start = start_of(None, Box(10, 20, 30, 60), 100, 61)
    corners = [Click(row, col, False) for row in (9, 30) for col in (19, 60)]
    assert start.clicks == (Click(19, 39, True), *corners)
    assert [each.is_positive for each in start_of(None, Box(0, 0, 100, 61), 100, 61).clicks] == [True]
    keys = {start_of(prior, box, 100, 61).key for prior in (None, *(np.eye(100, 61, k) > 0 for k in (0, 1)))
            for box in (None, Box(0, 0, 9, 9), Box(0, 0, 9, 8))}  # fmt: skip
    assert len(keys) == 9


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


# --- cache


@pytest.mark.parametrize("clicks", [1, 200])
def test_a_cache_of_the_smallest_values_takes_no_more_memory_than_it_may(clicks):
    cache = ByteLRU(2_000_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000 // (1 + clicks // 10)):
            key = (f"{number:064}", tuple(Click(1000 + number, 2000 + each, True) for each in range(clicks)))
            cache.put(key, (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.float32)), 7)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 100_000 < taken < 2_000_000


# --- keys


def test_keys_are_read_from_file_and_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# the annotators\nannotators-0123456789\n\n")
    found = read_keys(str(file), {"MST_API_KEYS": "robots-0123456789ab, others-0123456789ab"})
    assert set(found) == {"annotators-0123456789", "robots-0123456789ab", "others-0123456789ab"}
    assert read_keys("", {}) == ()
    with pytest.raises(ConfigError, match="fewer than 16"):
        read_keys("", {"MST_API_KEYS": "short"})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(str(tmp_path / "none"), {})


def test_every_tools_way_to_send_a_key_is_known():
    keys = Keys(("first-0123456789ab", "second-0123456789a"), 10)
    for headers in (
        {b"authorization": b"Bearer second-0123456789a"},
        {b"authorization": b"Token second-0123456789a"},
        {b"authorization": b"Basic dXNlcjpzZWNvbmQtMDEyMzQ1Njc4OWE="},
        {b"x-api-key": b"second-0123456789a"},
        {b"token": b"second-0123456789a"},
    ):
        assert keys.find(headers) == 1
    for wrong in ({}, {b"token": b"third"}, {b"authorization": b"Basic ?"}, {b"authorization": b""}):
        assert keys.find(wrong) is None


def test_a_key_may_ask_so_often_and_no_more():
    keys = Keys(("first-0123456789ab",), 10)
    waits = [keys.wait(0) for _ in range(30)]
    assert waits[:20] == [0.0] * 20
    assert 0 < waits[-1] <= 0.1
    time.sleep(waits[-1])
    assert keys.wait(0) == 0


def test_loopback_is_this_machine_alone():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST")))
    others = ("0.0.0.0", "10.0.0.1", "localhost.evil.example", "::", "", "127.0.0.1.evil.example")
    assert not any(map(is_loopback, others))


# --- batches


def test_calls_share_the_next_run_once_the_model_is_free():
    batches, may_run = [], threading.Event()

    def run(calls):
        batches.append(list(calls))
        may_run.wait()
        return [2 * call for call in calls]

    async def use():
        batcher = Batcher(run, 4, lambda call: call > 100)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher(call)) for call in (1, 2, 101, 3, 4, 5)]
        await asyncio.sleep(0.05)
        others[1].cancel()  # its caller gave up
        may_run.set()
        return [await first, *await asyncio.gather(*others, return_exceptions=True)]

    answers = asyncio.run(use())
    assert batches == [[0], [1, 3, 4, 5], [101]]
    assert answers[:2] == [0, 2]
    assert isinstance(answers[2], asyncio.CancelledError)
    assert answers[3:] == [202, 6, 8, 10]


def test_who_waits_for_a_run_that_fails_hears_of_it_and_the_next_run_goes_on():
    def run(calls):
        if 1 in calls:
            raise RuntimeError("out of memory")
        return calls

    async def use():
        batcher = Batcher(run, 4, lambda call: 0)
        failed = await asyncio.gather(batcher(1), return_exceptions=True)
        return failed, await batcher(2)

    (error,), answer = asyncio.run(use())
    assert str(error) == "out of memory"
    assert answer == 2


def test_more_work_than_somebody_would_wait_for_is_refused():
    load = Load(patience=0.25)

    def wait(seconds: float) -> None:
        with load.waiting():
            time.sleep(seconds)

    for _ in range(2):
        wait(0.1)  # so much does one take
    with load.waiting(), load.waiting():
        wait(0)  # two wait: 0.2 s
        with load.waiting(), pytest.raises(OverloadedError, match="3 clicks wait already"):
            wait(0)
    wait(0)


def test_a_batch_may_always_wait_and_an_old_pace_is_forgotten():
    load = Load(patience=0.05, batch=2)
    with load.waiting():
        time.sleep(0.1)  # the model starts
    with load.waiting(), load.waiting():  # they share a run
        with pytest.raises(OverloadedError), load.waiting():
            pass
        assert load.calls == 2
    time.sleep(0.06)
    with load.waiting(), load.waiting(), load.waiting():
        pass


def test_of_several_calls_few_run_at_once_and_the_first_that_fails_ends_the_others():
    running, most, finished = 0, 0, []

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 if number != 7 else 0)
        running -= 1
        if number == 7:
            raise OverloadedError("seven")
        finished.append(number)
        return number

    answers = asyncio.run(few_at_once(partial(call, number) for number in range(7)))
    assert (answers, most) == (list(range(7)), 4)
    finished.clear()

    async def fail_and_wait() -> None:
        with pytest.raises(OverloadedError, match="seven"):
            await few_at_once(partial(call, number) for number in range(7, 20))
        await asyncio.sleep(0.1)

    asyncio.run(fail_and_wait())
    assert finished == []


# --- models


@pytest.fixture
def settings(checkpoint) -> ServeSettings:
    return ServeSettings(model=str(checkpoint), precision="fp32", max_batch=4)


def crops(count: int, config) -> list:
    clicks = [Click(20, 30, True), Click(5, 5, False)]
    return [next_crop(picture(seed), clicks[: 1 + seed % 2], None, 56, config) for seed in range(count)]


def test_an_answer_does_not_depend_on_who_shares_the_batch(settings, checkpoint):
    config = load_model(checkpoint)[1]
    served, asked = ServedModel(settings), crops(4, config.eval)
    together = served.answer(asked)
    assert [each.batch for each in together] == [4] * 4
    for number, crop in enumerate(asked):
        alone = served.answer([crop])[0]
        np.testing.assert_allclose(alone.logits, together[number].logits, atol=1e-5)
        np.testing.assert_array_equal(alone.selected[0].indices, together[number].selected[0].indices)
    reversed_ = served.answer(asked[::-1])[::-1]
    for one, other in zip(together, reversed_, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)  # to the bit: one size of batch
    np.testing.assert_array_equal(served.answer(asked[:3])[0].logits, together[0].logits)


def test_many_clicks_fit(settings, checkpoint):
    config = load_model(checkpoint)[1].eval
    clicks = [Click(20, 30, True)] * (SLOTS[0] + 1)
    answer = ServedModel(settings).answer([next_crop(picture(), clicks, None, 56, config)])[0]
    assert np.isfinite(answer.logits).all()


def test_selected_tokens_are_the_networks(settings, checkpoint):
    config = load_model(checkpoint)[1]
    crop = crops(1, config.eval)[0]
    (selected,) = ServedModel(settings).answer([crop])[0].selected
    assert selected.patch_size in TINY_MODEL.patch_sizes
    assert selected.columns == 56 // selected.patch_size
    assert len(selected.indices) == len(selected.scores) == int(selected.columns**2 * TINY_MODEL.k_ratio)
    assert (np.diff(selected.scores) <= 0).all()


def test_a_model_that_answers_no_numbers_is_refused(tmp_path, settings):
    weights = MST(TINY_MODEL).state_dict()
    weights["head.conv_seg.bias"][:] = float("nan")
    save_checkpoint(tmp_path / "broken", weights, Config(model=TINY_MODEL))
    with pytest.raises(CheckpointError, match="broken: its probabilities are no numbers"):
        ServedModel(settings.model_copy(update={"model": str(tmp_path / "broken")}))


def test_bf16_is_close_and_is_not_fp32(settings, checkpoint):
    config = load_model(checkpoint)[1]
    exact, rough = (
        ServedModel(settings.model_copy(update={"precision": precision})).answer(crops(1, config.eval))[0]
        for precision in ("fp32", "bf16")
    )
    exact, rough = (
        to_probabilities(torch.from_numpy(each.logits)[None, None], 56) for each in (exact, rough)
    )
    assert 0 < np.abs(exact - rough).mean() < 0.1
