"""The model that answers crops: in batches, with its tokens, in bf16, and where it is none."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from mst import encoders
from mst.checkpoint import load_model, save_checkpoint
from mst.clicks import Click
from mst.config import Config
from mst.encoders import OpenVINOEncoder
from mst.errors import CheckpointError
from mst.model import MST
from mst.predictor import forward, next_crop, outputs, to_probabilities
from pipelines.cluster import free_port
from serve.inference import encoder as encoder_module
from serve.inference.model import SLOTS, Answer, ServedModel
from serve.inference.registry import fetch_model, is_registered, pin
from serve.inference.segmenter import Segmenter
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.core import Core
from tests.conftest import LATE_MODEL, TINY_MODEL, picture, png


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


@pytest.fixture
def late(tmp_path, settings) -> ServeSettings:
    """Settings of a model whose clicks enter after all blocks."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "late", MST(LATE_MODEL).state_dict(), Config(model=LATE_MODEL))
    return settings.model_copy(update={"model": str(tmp_path / "late")})


@pytest.mark.parametrize("encoder", ["torch", "auto"])
def test_an_image_is_encoded_once_for_all_clicks_on_it(late, encoder, monkeypatch):
    made = []
    monkeypatch.setattr(
        encoder_module, "OpenVINOEncoder", lambda *asked: made.append(OpenVINOEncoder(*asked)) or made[0]
    )
    exact = {"encoder": encoder, "precision": "fp32"}  # as what is expected
    served, config = ServedModel(late.model_copy(update=exact)), Config()
    assert len(made) == (encoder != "torch")
    asked = crops(3, config.eval)
    before = served._encodings.encoded
    first = served.answer(asked)
    assert served._encodings.encoded == before + 3
    again = served.answer(asked[::-1])[::-1]
    assert served._encodings.encoded == before + 3
    model = load_model(Path(late.model))[0].eval()
    for crop, one, other in zip(asked, first, again, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)
        expected = outputs(model, [crop]).logits[0, 0].detach().numpy()
        np.testing.assert_allclose(one.logits, expected, atol=1e-4)


@pytest.mark.parametrize("told", [True, False])
def test_what_a_click_will_look_at_is_encoded_before_it(late, told):
    segmenter = Segmenter(late, late.model)
    encodings = segmenter._models[late.model]._encodings

    async def encoded_by(call) -> int:
        """How many crops had to be encoded while a person waited."""
        await asyncio.sleep(0.3)
        before = encodings.encoded
        await call
        return encodings.encoded - before

    async def use():
        ask = (segmenter.describe, segmenter.predict, Metrics("local"))
        core = Core(late, late.model, *ask, segmenter.anticipate if told else None)
        await core.model()
        stored = await core.add_image(png(picture()))
        first, second = Click(45, 70, True), Click(44, 71, True)
        return [await encoded_by(core.segment(stored, each)) for each in ([first], [first, second])]

    first, second = asyncio.run(use())
    assert first == (0 if told else 1)
    assert not (told and second)


def test_what_is_kept_of_images_is_bounded(late):
    served = ServedModel(late.model_copy(update={"encoding_bytes": 1}))
    for crop in crops(3, Config().eval):
        served.answer([crop])
    assert len(served._encodings._known) == 1


@pytest.mark.parametrize(
    ("asked", "spoil", "said"),
    [
        ("openvino", "absent", "torch encodes: OpenVINO is not installed"),
        ("openvino", "wrong", "torch encodes: OpenVINO's encodings have a cosine of -1.0000 to torch's"),
        ("auto", "absent", None),
    ],
)
def test_where_openvino_cannot_torch_encodes_and_it_is_said_once(
    late, monkeypatch, caplog, asked, spoil, said
):
    if spoil == "absent":
        monkeypatch.setattr(encoders, "openvino", None)
    else:
        monkeypatch.setattr(encoder_module, "least_cosine", lambda *_: -1.0)
    served = ServedModel(late.model_copy(update={"encoder": asked}))
    warnings = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert [each[: len(said)] for each in warnings] == [said] if said else warnings == []
    expected = ServedModel(late.model_copy(update={"encoder": "torch"}))
    (crop,) = crops(1, Config().eval)
    np.testing.assert_array_equal(served.answer([crop])[0].logits, expected.answer([crop])[0].logits)


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


def test_crops_of_two_sides_are_answered_at_once_but_not_in_one_forward(settings, tmp_path):
    torch.manual_seed(0)
    config = Config(model=TINY_MODEL.model_copy(update={"patch_sizes": (4,)}))
    save_checkpoint(tmp_path / "one", MST(config.model).state_dict(), config)
    address = str(tmp_path / "one")
    segmenter = Segmenter(settings.model_copy(update={"model": address}), address)
    click = [Click(20, 30, True)]
    asked = [next_crop(picture(), click, None, side, config.eval) for side in (56, 24, 56, 24, 56)]

    async def ask() -> list[Answer]:
        return await asyncio.gather(*(segmenter.predict(address, crop) for crop in asked))

    answers = asyncio.run(ask())
    model = load_model(tmp_path / "one")[0].eval()
    for crop, answer in zip(asked, answers, strict=True):
        probabilities = to_probabilities(torch.from_numpy(answer.logits)[None, None], crop.side)[0]
        np.testing.assert_allclose(probabilities, forward(model, [crop])[0], atol=1e-5)
    assert {each.batch for each in answers} == {2, 3}


def test_of_the_threads_that_ran_the_model_only_one_is_left(settings, checkpoint, monkeypatch):
    """Each keeps a pool of OpenMP's, and two pools slow each other down."""
    ran, run = [], ServedModel._run

    def seen(self, *arguments):
        ran.append(threading.current_thread())
        return run(self, *arguments)

    monkeypatch.setattr(ServedModel, "_run", seen)
    address = str(checkpoint)
    segmenter = Segmenter(settings.model_copy(update={"model": address}), address)
    loading = {*ran}
    assert loading
    assert not any(each.is_alive() for each in loading)
    ran.clear()
    crop = crops(1, load_model(checkpoint)[1].eval)[0]
    for _ in range(2):
        asyncio.run(segmenter.predict(address, crop))
    assert len(ran) == 2
    assert len({*ran}) == 1


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


def test_bf16_is_what_autocast_makes_of_the_checkpoint(settings, checkpoint):
    model, config = load_model(checkpoint)
    crop = crops(1, config.eval)[0]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = outputs(model.eval(), [crop], SLOTS[0]).logits[0, 0].float().numpy()
    served = ServedModel(settings.model_copy(update={"precision": "bf16"}))
    np.testing.assert_array_equal(served.answer([crop])[0].logits, expected)


def test_a_registry_without_a_champion_is_told_from_one_that_cannot_be_asked(registry, monkeypatch):
    assert not is_registered(ServeSettings())
    client = MlflowClient(registry, registry)
    client.create_registered_model("mst")
    assert not is_registered(ServeSettings())
    version = client.create_model_version("mst", "somewhere")
    client.set_registered_model_alias("mst", "champion", version.version)
    assert is_registered(ServeSettings())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(CheckpointError, match="the registry cannot be asked"):
        is_registered(ServeSettings())


def test_a_model_that_cannot_be_served_is_named(registry, tmp_path):
    with pytest.raises(CheckpointError, match=r"gives no model 'models:/mst@champion'.*make demo"):
        pin(ServeSettings())
    with pytest.raises(CheckpointError, match="neither models:/NAME@ALIAS nor"):
        pin(ServeSettings(model="models:/mst"))
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        fetch_model(ServeSettings(model=str(tmp_path / "none")), tmp_path)
