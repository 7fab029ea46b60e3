"""The server on a real Ray Serve, spoken to over HTTP."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import ray
from PIL import Image
from pycocotools import mask as coco_mask

from mst.checkpoint import load_model, verify
from mst.clicks import Click
from mst.client import Client, Retry
from mst.errors import ServerError
from mst.predictor import Predictor
from pipelines.cluster import free_port
from serve.wire.encoding import encode
from tests.conftest import CLICKS, picture, png, random_mask
from tests.protocol_calls import filled


@pytest.fixture(scope="module")
def http(server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    model, config = load_model(checkpoint)
    return Predictor(model, config.eval)


def body(clicks, **more):
    return {"clicks": [{"x": c.col, "y": c.row, "is_positive": c.is_positive} for c in clicks], **more}


@pytest.fixture(scope="module")
def image_id(http) -> str:
    return http.post("/v1/images", content=png(picture())).json()["image_id"]


def decoded(mask, form, height=90, width=140):
    if form == "rle":
        return coco_mask.decode(mask).astype(bool)
    if form == "png":
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(mask)))) == 255
    rings = [ring for polygon in mask for ring in (polygon["outer"], *polygon["holes"])]
    return filled(rings, height, width)


def test_an_image_is_stored_under_its_sha256(http):
    data = png(picture())
    for _ in range(2):
        reply = http.post("/v1/images", content=data)
        assert reply.status_code == 201
        expected = {"image_id": hashlib.sha256(data).hexdigest(), "width": 140, "height": 90}
        assert reply.json() == expected | {"keeps_annotations": False, "adapts": False}


@pytest.mark.parametrize("form", ["rle", "png", "polygons"])
def test_masks_are_the_librarys_in_every_format(http, image_id, predictor, checkpoint, form):
    exact = {"tolerance": 0, "min_area": 0}
    reply = http.post(f"/v1/images/{image_id}/mask", json=body(CLICKS, format=form, **exact)).json()
    expected = predictor.predict(picture(), CLICKS)
    mask = expected.mask(predictor.config.threshold)
    assert 0.02 < mask.mean() < 0.98
    np.testing.assert_array_equal(decoded(reply["mask"], form), mask)
    assert reply["score"] == pytest.approx(expected.score(predictor.config.threshold), abs=1e-6)
    digest = verify(checkpoint)["sha256"]["model.safetensors"]
    assert reply["model"] == {"name": checkpoint.parent.name, "version": "random", "digest": digest}
    assert reply["timing_ms"]["total"] >= reply["timing_ms"]["model"] >= 0


def test_the_client_clicks_undoes_and_branches_like_the_library(server, predictor):
    client, segment = Client(server), predictor.open(picture(1))
    image_id = client.upload(picture(1))
    other = [*CLICKS[:2], Click(5, 5, False)]
    for clicks in (CLICKS[:1], CLICKS[:2], CLICKS, CLICKS[:1], other, CLICKS):
        np.testing.assert_array_equal(client.mask(image_id, clicks).mask, segment(clicks))
    np.testing.assert_array_equal(client.segment(picture(2), CLICKS).mask, predictor.open(picture(2))(CLICKS))
    with pytest.raises(ServerError, match=r"404 .*no image 'x'"):
        client.mask("x", CLICKS)
    with pytest.raises(ServerError, match="refused"):
        Client(f"http://127.0.0.1:{free_port()}", retry=Retry(seconds=0)).upload(picture())


def test_clicks_of_many_users_at_once_are_not_mixed_up(server, predictor):
    answers = {}

    def use(seed: int) -> None:
        answers[seed] = Client(server).segment(picture(seed), CLICKS)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(10, 22)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, answer in answers.items():
        expected = predictor.open(picture(seed))(CLICKS)
        # A batched forward may differ from a single one in the last bits.
        assert (answer.mask == expected).mean() > 0.999
    assert len(answers) == 12


def test_a_replica_that_dies_costs_nothing_but_time(http, image_id, predictor):
    before = http.post(f"/v1/images/{image_id}/mask", json=body(CLICKS)).json()
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if "Segmenter" in actor["name"]:
            ray.kill(ray.get_actor(**actor), no_restart=False)
    more = [*CLICKS, Click(80, 130, False)]
    reply = http.post(f"/v1/images/{image_id}/mask", json=body(more))
    assert reply.status_code == 200
    np.testing.assert_array_equal(decoded(reply.json()["mask"], "rle"), predictor.open(picture())(more))
    assert http.post(f"/v1/images/{image_id}/mask", json=body(CLICKS)).json()["mask"] == before["mask"]


def test_what_a_browser_and_an_engineer_look_at(http, checkpoint):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["version"] == checkpoint.name
    assert http.get("/readyz").json()["rejected"] is None
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert 'src="web/app.js"' in page.text  # relative: below any prefix
    assert http.get("/web/app.js").is_success
    assert http.get("/favicon.ico").headers["content-type"].startswith("image/svg")
    assert http.get("/docs").is_success
    paths = http.get("/openapi.json").json()["paths"]
    ours = {"/v1/images", "/v1/images/{image_id}/mask", "/v1/images/{image_id}/masks", "/v1/segment"}
    assert ours | {"/healthz", "/readyz"} <= set(paths)
    assert http.get("/web/../api.py").status_code == 404


ONE = [{"x": 1, "y": 1, "is_positive": True}]


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"clicks": [{"x": 140, "y": 1}]}, ["clicks", 0, "x"]),
        ({"clicks": [*ONE, {"x": 3, "y": 90.5}]}, ["clicks", 1, "y"]),
        ({"clicks": [{"x": -0.5, "y": 1}]}, ["clicks", 0, "x"]),
        ({"clicks": [{"x": "left", "y": 1}]}, ["clicks", 0, "x"]),
        ({"clicks": [{"x": float("nan"), "y": 1}]}, ["clicks", 0, "x"]),
        ({"clicks": [{"x": float("inf"), "y": 1}]}, ["clicks", 0, "x"]),
        ({"clicks": [{"x": 1}]}, ["clicks", 0, "y"]),
        ({"clicks": [{"x": 1, "y": 1, "positive": True}]}, ["clicks", 0, "positive"]),
        ({"clicks": [{"x": 1, "y": 1, "is_positive": False}]}, ["clicks"]),
        ({"clicks": []}, ["clicks"]),
        ({"clicks": ONE * 201}, ["clicks"]),
        ({"clicks": ONE, "format": "jpeg"}, ["format"]),
        ({}, ["clicks"]),
    ],
)
def test_wrong_clicks_are_a_422_that_names_the_field(http, image_id, sent, field):
    data = json.dumps(sent)  # httpx itself refuses NaN
    headers = {"Content-Type": "application/json"}
    reply = http.post(f"/v1/images/{image_id}/mask", content=data, headers=headers)
    assert reply.status_code == 422
    assert [each["loc"] for each in reply.json()["detail"]] == [["body", *field]]
    assert all(each["msg"] for each in reply.json()["detail"])


@pytest.mark.parametrize(
    "image_id", ["0" * 64, "abc", "..%2f..%2fetc%2fpasswd", "%00", "A" * 64], ids=lambda each: each[:8]
)
def test_an_unknown_image_is_a_404(http, image_id):
    assert http.post(f"/v1/images/{image_id}/mask", json={"clicks": ONE}).status_code == 404


def test_what_is_no_image_is_a_415(http):
    for data in (b"", b"no image", png(picture())[:1000], b"<svg xmlns='http://www.w3.org/2000/svg'/>"):
        reply = http.post("/v1/images", content=data)
        assert reply.status_code == 415
        assert "image" in reply.json()["detail"]
    encoded = base64.b64encode(b"no image").decode()
    assert http.post("/v1/segment", json={"image": encoded, "clicks": ONE}).status_code == 415
    reply = http.post("/v1/segment", json={"image": "?", "clicks": ONE})
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "image"]


def test_too_much_is_a_413(http):
    data = bytes(200_001)

    def stream():
        yield data[:150_000]
        yield data[150_000:]

    for content in (data, stream()):  # with its length declared, and without
        reply = http.post("/v1/images", content=content)
        assert reply.status_code == 413
        assert "more than 200000 bytes" in reply.json()["detail"]
    reply = http.post("/v1/images", content=png(np.zeros((1000, 1000, 3), np.uint8)))
    assert reply.status_code == 413
    assert "1000" in reply.json()["detail"]


def test_polygons_have_holes_and_decode_to_the_mask_they_came_from():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = random_mask(rng)
        polygons = [polygon.model_dump() for polygon in encode(mask, "polygons")]
        np.testing.assert_array_equal(decoded(polygons, "polygons", *mask.shape), mask)
    assert encode(np.zeros((4, 4), bool), "polygons") == []
