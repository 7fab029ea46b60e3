"""What can be asked for over HTTP, of a model in this process, and what comes out."""

import base64

import httpx
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from mst.checkpoint import load_model, save_checkpoint
from mst.clicks import Click
from mst.client import Client
from mst.config import EvalConfig
from mst.data.pixels.mask_images import decode_mask
from mst.model import MST
from mst.overrides import override
from mst.predictor import Predictor, start_from
from serve.settings import ServeSettings
from tests.conftest import TINY_MODEL, listening, local_api, picture, png, random_mask

CLICKS = [{"x": 30, "y": 20}, {"x": 100, "y": 50}]


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    model, config = load_model(checkpoint)
    return Predictor(model, config.eval)


@pytest.fixture(scope="module")
def mask_url(http) -> str:
    return f"/v1/images/{http.post('/v1/images', content=png(picture())).json()['image_id']}/mask"


def decoded(reply) -> np.ndarray:
    return coco_mask.decode(reply["mask"]).astype(bool)


@pytest.fixture
def patient(checkpoint, tmp_path) -> tuple[MST, EvalConfig, ServeSettings]:
    """A model that looks several times at a click, its settings, and those of a server of it."""
    config = override(
        load_model(checkpoint)[1],
        {"model.patch_sizes": "4", "eval.zoom_first": True, "eval.zoom_sides": (24,), "eval.cascade": 1},
    )
    torch.manual_seed(0)
    model = MST(config.model)
    with torch.no_grad():
        model.head.conv_seg.weight.mul_(50)  # so that its masks have many parts, which small changes change
    save_checkpoint(tmp_path / "patient", model.state_dict(), config)
    settings = ServeSettings(
        model=str(tmp_path / "patient"), image_store=str(tmp_path / "images"), precision="fp32"
    )
    return model, config.eval, settings


def test_a_model_is_clicked_on_as_its_settings_say(patient):
    model, config, settings = patient
    clicks = [Click(20, 30, True), Click(50, 100, True)]
    with listening(local_api(settings)) as url, Client(url) as client:
        for number in (2, 1):
            expected = Predictor(model, config).open(picture())(clicks[:number])
            np.testing.assert_array_equal(client.segment(picture(), clicks[:number]).mask, expected)
            assert (expected != Predictor(model, EvalConfig()).open(picture())(clicks[:number])).any()


def test_a_first_look_is_the_models_first_forward_and_says_that_more_comes(patient):
    model, config, settings = patient
    once = config.model_copy(update={"zoom_first": False, "cascade": 0})
    with listening(local_api(settings)) as url, httpx.Client(base_url=url, timeout=60) as http:
        image_id = http.post("/v1/images", content=png(picture())).json()["image_id"]
        replies = [
            http.post(
                f"/v1/images/{image_id}/mask", json={"clicks": CLICKS[:1], "first_look": first_look}
            ).json()
            for first_look in (True, False, True)
        ]
    assert [each["is_final"] for each in replies] == [False, True, True]
    for reply, settings in zip(replies, (once, config, config), strict=True):
        expected = Predictor(model, settings).open(picture())([Click(20, 30, True)])
        np.testing.assert_array_equal(decoded(reply), expected)


def test_a_prior_mask_is_corrected_as_by_the_library(http, mask_url, predictor):
    prior = random_mask(np.random.default_rng(1), 90, 140)
    clicks = [Click(20, 30, False)]
    expected = predictor.predict(picture(), clicks, start_from(prior)).mask(predictor.config.threshold)
    rle = coco_mask.encode(np.asfortranarray(prior, np.uint8))
    rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    for form in (rle, base64.b64encode(png(np.repeat(prior[..., None] * np.uint8(255), 3, 2))).decode()):
        sent = {"clicks": [{"x": 30, "y": 20, "is_positive": False}], "prior": form}
        np.testing.assert_array_equal(decoded(http.post(mask_url, json=sent).json()), expected)
    without = decoded(http.post(mask_url, json={"clicks": CLICKS[:1]}).json())
    assert (without != expected).any()


def test_a_box_alone_says_where_the_object_is(http, mask_url):
    reply = http.post(mask_url, json={"box": [20, 10, 90, 70]}).json()
    assert decoded(reply).any()
    for box, why in (([20, 10, 20, 70], "left < right <= 140"), ([20, 10, 141, 70], "left < right <= 140")):
        answer = http.post(mask_url, json={"box": box})
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "box"]
        assert why in answer.json()["detail"][0]["msg"]


def test_the_reply_says_all_of_the_mask(http, mask_url, predictor):
    sent = {"clicks": CLICKS, "threshold": 0.7, "probabilities": True, "tokens": True}
    reply = http.post(mask_url, json=sent).json()
    clicks = [Click(20, 30, True), Click(50, 100, True)]
    expected = predictor.predict(picture(), clicks)
    mask = expected.mask(0.7)
    np.testing.assert_array_equal(decoded(reply), mask)
    rows, cols = np.nonzero(mask)
    assert reply["box"] == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
    assert reply["score"] == pytest.approx(expected.score(0.7), abs=1e-6)
    (tokens,) = reply["tokens"]
    assert tokens["patch_size"] in TINY_MODEL.patch_sizes
    assert len(tokens["boxes"]) == len(tokens["scores"]) > 0
    assert all(0 <= x1 < x2 <= 140 and 0 <= y1 < y2 <= 90 for x1, y1, x2, y2 in tokens["boxes"])
    assert http.post(mask_url, json={"clicks": CLICKS}).json()["tokens"] is None


def test_a_picture_of_the_box_alone_is_the_mask_in_it(http, mask_url, predictor):
    reply = http.post(mask_url, json={"clicks": CLICKS, "format": "png", "crop": True}).json()
    left, top, right, bottom = reply["box"]
    mask = predictor.predict(picture(), [Click(20, 30, True), Click(50, 100, True)]).mask(0.49)
    found = decode_mask(base64.b64decode(reply["mask"]), "the reply", max_pixels=90 * 140, formats=("PNG",))
    np.testing.assert_array_equal(found, mask[top:bottom, left:right])
    assert found.sum() == mask.sum()
    nothing = {"clicks": CLICKS, "format": "png", "crop": True, "threshold": 1 - 1e-9}
    assert [http.post(mask_url, json=nothing).json()[each] for each in ("mask", "box")] == ["", None]
    refused = http.post(mask_url, json={"clicks": CLICKS, "crop": True})
    assert refused.status_code == 422
    assert "crop is for the format png, not rle" in refused.json()["detail"][0]["msg"]


def test_several_objects_of_an_image_are_one_request(http, mask_url):
    objects = [{"clicks": CLICKS[:1]}, {"clicks": CLICKS}, {"box": [20, 10, 90, 70]}]
    reply = http.post(f"{mask_url}s", json={"objects": objects}).json()
    for one, sent in zip(reply["masks"], objects, strict=True):
        assert one["mask"] == http.post(mask_url, json=sent).json()["mask"]
    answer = http.post(f"{mask_url}s", json={"objects": [objects[0], {"clicks": [{"x": 140, "y": 0}]}]})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "objects", 1, "clicks", 0, "x"]


def test_a_folder_has_no_aliases(http, mask_url):
    answer = http.post(mask_url, json={"clicks": CLICKS}, headers={"X-Model-Alias": "challenger"})
    assert answer.status_code == 404
    assert "no alias 'challenger'" in answer.json()["detail"]


def test_metrics_count_what_was_done(http, mask_url):
    http.post(mask_url, json={"clicks": CLICKS})
    http.post(mask_url, json={"clicks": CLICKS})
    http.post(mask_url, json={"clicks": []})
    text = http.get("/metrics").text
    for line in (
        'mst_requests_total{method="POST",replica="local",route="/v1/images/{image_id}/mask",status="422"}',
        'mst_cache_total{cache="prediction",replica="local",result="hit"}',
        'mst_stage_seconds_bucket{le="+Inf",replica="local",stage="model"}',
        'mst_batch_size_bucket{le="1.0",replica="local"}',
        "mst_requests_in_hand",
    ):
        assert line in text
