"""The HTTP interface around a model in this process: who is let in, with how much, and what comes out."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from pycocotools import mask as coco_mask
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from benchmarks.serving import crown, wait_for
from mst.checkpoint import load_model, save_checkpoint
from mst.clicks import Click
from mst.config import Config, EvalConfig
from mst.errors import CheckpointError
from mst.model import MST
from mst.predictor import Predictor, start_from
from serve.api import build_api
from serve.app import settle
from serve.core import Core
from serve.keys import Keys
from serve.metrics import Metrics
from serve.registry import fetch_model, pin
from serve.segmenter import Segmenter
from serve.settings import ServeSettings
from tests.conftest import TINY_MODEL, listening, local_api, picture, png, random_mask

KEY = "annotators-0123456789"
CLICKS = [{"x": 30, "y": 20}, {"x": 100, "y": 50}]


@pytest.fixture(scope="module")
def predictor(checkpoint) -> Predictor:
    model, config = load_model(checkpoint)
    return Predictor(model, config.eval)


@pytest.fixture(scope="module")
def mask_url(http) -> str:
    return f"/v1/images/{http.post('/v1/images', content=png(picture())).json()['image_id']}/mask"


@pytest.fixture
def serving(checkpoint, tmp_path):
    """Starts an interface of its own, by settings and keys."""

    def start(*keys: str, **more):
        basic = {"model": str(checkpoint), "image_store": str(tmp_path), "precision": "fp32", "max_batch": 1}
        return listening(local_api(ServeSettings(**basic, **more), *keys))

    return start


def decoded(reply) -> np.ndarray:
    return coco_mask.decode(reply["mask"]).astype(bool)


# --- what can be asked for


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


# --- who is let in


def test_with_keys_all_but_the_page_and_the_probes_wants_one(serving):
    with serving(KEY) as url, httpx.Client(base_url=url) as client:
        for path in ("/", "/web/app.js", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/docs", "/openapi.json", "/v1/images", "/nowhere"):
            reply = client.get(path)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/v1/images", content=png(picture())).status_code == 401
        allowed = {"Authorization": f"Bearer {KEY}", "Host": "annotate.example"}
        assert client.post("/v1/images", content=png(picture()), headers=allowed).status_code == 201


def test_a_key_that_asks_too_often_is_told_when_to_come_back(serving):
    with serving(KEY, key_rate=2) as url, httpx.Client(base_url=url, headers={"Token": KEY}) as client:
        replies = [client.get("/metrics") for _ in range(6)]
        assert [reply.status_code for reply in replies] == [200] * 4 + [429] * 2
        assert int(replies[-1].headers["retry-after"]) >= 1


def test_without_keys_a_page_of_another_site_gets_nothing(http):
    assert http.get("/", headers={"Host": "evil.example"}).status_code == 403  # DNS rebinding
    assert http.get("/", headers={"Host": "localhost:9"}).status_code == 200
    allowed = http.options("/v1/segment", headers={"Origin": "https://evil.example"}).headers
    assert "access-control-allow-origin" not in allowed


# --- how much each may bring


def test_more_than_fits_is_refused_at_once_and_then_served(serving):
    with serving(max_requests=2) as url:
        image_id = httpx.post(f"{url}/v1/images", content=png(picture())).json()["image_id"]

        def ask(number: int) -> httpx.Response:
            clicks = {"clicks": [{"x": number, "y": click} for click in range(40)]}
            return httpx.post(f"{url}/v1/images/{image_id}/mask", json=clicks, timeout=60)

        with ThreadPoolExecutor(12) as pool:
            replies = list(pool.map(ask, range(24)))
        statuses = [reply.status_code for reply in replies]
        assert set(statuses) == {200, 503}
        refused = next(reply for reply in replies if reply.status_code == 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert "in hand already" in refused.json()["detail"]
        assert ask(0).status_code == 200


def test_what_takes_too_long_is_given_up(serving):
    with serving(deadline_seconds=0.2) as url:
        image_id = httpx.post(f"{url}/v1/images", content=png(picture())).json()["image_id"]
        clicks = {"clicks": [{"x": 1, "y": 1}] * 200}
        reply = httpx.post(f"{url}/v1/images/{image_id}/mask", json=clicks, timeout=60)
        assert reply.status_code == 503
        assert reply.headers["retry-after"]

        def slowly():
            yield b"{"
            time.sleep(1)
            yield b"}"

        reply = httpx.post(f"{url}/v1/segment", content=slowly(), timeout=60)
        assert reply.status_code == 408


def test_a_small_body_of_a_million_objects_is_refused(serving):
    with serving(max_bytes=4_000_000) as url:
        reply = httpx.post(f"{url}/v1/segment", content=b"[" * 1_000_001, timeout=60)
        assert reply.status_code == 413
        reply = httpx.post(
            f"{url}/v1/segment", content=b"[" * 900_000, timeout=60
        )  # deeper than Python's stack
        assert reply.status_code in (400, 422)


def test_commas_among_pixels_are_no_items_and_no_header_hides_those_of_json(serving, checkpoint):
    pixels = np.full((600, 600, 3), ord(","), np.uint8)
    tensors = [("image", "UINT8", pixels), ("clicks", "FP32", np.array([[300, 300, 1]], "<f4"))]
    inputs = [
        {"name": n, "datatype": t, "shape": a.shape, "parameters": {"binary_data_size": a.nbytes}}
        for n, t, a in tensors
    ]
    text = json.dumps({"inputs": inputs}).encode()
    length, path = "Inference-Header-Content-Length", f"/v2/models/{checkpoint.parent.name}/infer"
    with serving(max_bytes=4_000_000) as url, httpx.Client(base_url=url, timeout=60) as client:
        body = b"".join([text, *(array.tobytes() for _, _, array in tensors)])
        reply = client.post(path, content=body, headers={length: str(len(text))})
        assert reply.status_code == 200, reply.text
        many = b"[" * 1_000_001
        for there, headers in (
            ("/v1/segment", [(length, "0")]),
            (path, [(length, str(len(many))), (length, "0")]),
            (path, [(length, "9" * 5000)]),
            (path, [(length, "x")]),
            (path, []),
        ):
            assert client.post(there, content=many, headers=headers).status_code == 413
        for wrong in ("9" * 5000, "\u00b2".encode("latin-1"), "-1", ""):
            assert client.post(path, content=b"{}", headers={length: wrong}).status_code == 422


# --- what nobody should send

anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
numbers = st.floats() | st.integers() | st.sampled_from([1e308, -1e-308, 2**63, 139.999999, 89.5, -0.0])
clicks = st.lists(
    st.fixed_dictionaries(
        {"x": numbers | anything, "y": numbers | anything}, optional={"is_positive": st.booleans() | anything}
    ),
    max_size=4,
)
rles = st.fixed_dictionaries(
    {
        "size": st.sampled_from([[90, 140]]) | anything,
        "counts": st.text(st.characters(max_codepoint=127)) | anything,
    }
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "clicks": clicks | anything,
        "box": st.lists(st.integers(-5, 150), min_size=4, max_size=4) | anything,
        "prior": rles | st.text() | anything,
        "threshold": numbers | anything,
        "format": st.sampled_from(["rle", "png", "polygons"]) | anything,
        "tolerance": numbers | anything,
        "min_area": numbers | anything,
        "probabilities": st.booleans() | anything,
        "tokens": st.booleans() | anything,
        "image": st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()) | anything,
    },
)
hostile = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@hostile
@given(body=requests | anything, route=st.sampled_from(["mask", "masks", "segment"]))
def test_no_json_makes_the_server_fail(http, mask_url, body, route):
    path = "/v1/segment" if route == "segment" else mask_url.removesuffix("mask") + route
    sent = json.dumps({"objects": [body]} if route == "masks" else body).encode()
    reply = http.post(path, content=sent, headers={"Content-Type": "application/json"})
    assert reply.status_code in (200, 413, 415, 422), reply.text
    if reply.status_code == 200 and route == "mask":
        assert 0 <= reply.json()["score"] <= 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/predict", rb'{"model": "\ud800", "image": "", "params": {}}'),
        ("/invocations", rb'{"inputs": [], "\ud800": 1}'),
        ("/predict", rb'{"tasks": [{"data": {}}], "label_config": "\ud800"}'),
        ("/v2/models/random/infer", rb'{"inputs": [{"name": "\ud800"}]}'),
    ],
)
def test_an_error_may_repeat_text_that_is_no_unicode(http, path, body):
    reply = http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 404, 422), reply.text


def test_the_interface_is_what_its_openapi_says(local):
    schema = schemathesis.openapi.from_url(f"{local}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 6
    for operation in operations:

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        @given(case=operation.as_strategy())
        def check(case):
            case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])

        check()


@hostile
@given(data=st.binary(max_size=200), cut=st.integers(0, 40_000), flip=st.integers(0, 40_000))
def test_no_image_makes_the_server_fail(http, data, cut, flip):
    good = bytearray(png(picture()))
    flipped = bytes([*good[: flip % len(good)], *data, *good[flip % len(good) + 1 :]])
    for body in (data, bytes(good[: cut % len(good)]), flipped):
        assert http.post("/v1/images", content=body).status_code in (201, 413, 415)


# --- which version answers


def random_checkpoint(folder, seed: int, bias: float = 0.0):
    weights = MST(TINY_MODEL).state_dict()
    weights["head.conv_seg.bias"][:] = bias + 0.01 * seed
    save_checkpoint(folder, weights, Config(model=TINY_MODEL))
    return folder


@contextmanager
def versioned(settings: ServeSettings, first: str = "") -> Iterator[str]:
    """Serve with the segmenter's own class, which runs without Ray too.

    `first` is the version that the alias named when the server was set up; now, if it is not given.
    """
    settings, now = settle(settings)
    first = first or now
    segmenter = Segmenter(settings, first)
    core = Core(settings, first, segmenter.describe, segmenter.predict, Metrics("local"))
    with listening(build_api(core, settings, Keys((), 1))) as url:
        yield url
    segmenter.close()  # MLflow knows one registry at a time in a process


def test_the_champion_is_followed_and_a_broken_one_is_never_let_in(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    crown(registry, random_checkpoint(tmp_path / "one", 1))
    settings = ServeSettings(
        model="models:/mst@champion", image_store=str(tmp_path / "images"), poll_seconds=0.2, max_batch=1
    )
    with versioned(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        path = f"/v1/images/{client.post('/v1/images', content=png(picture())).json()['image_id']}/mask"
        assert client.get("/readyz").json()["version"] == "1"
        seen, done = [], threading.Event()

        def click() -> None:
            with httpx.Client(base_url=url, timeout=30) as annotator:
                while not done.is_set():
                    reply = annotator.post(path, json={"clicks": CLICKS})
                    seen.append((reply.status_code, reply.json().get("model", {}).get("version")))

        annotator = threading.Thread(target=click)
        annotator.start()
        crown(registry, random_checkpoint(tmp_path / "two", 2))
        assert wait_for(lambda: client.get("/readyz").json()["version"] == "2", 30) < 30
        crown(registry, random_checkpoint(tmp_path / "three", 3, bias=float("nan")))
        assert wait_for(lambda: client.get("/readyz").json()["rejected"], 30) < 30
        ready = client.get("/readyz").json()
        assert ready["version"] == "2"
        assert ready["rejected"]["model"] == "models:/mst/3"
        assert "no numbers" in ready["rejected"]["reason"]
        crown(registry, random_checkpoint(tmp_path / "four", 4))
        assert wait_for(lambda: client.get("/readyz").json()["version"] == "4", 30) < 30
        assert client.get("/readyz").json()["rejected"] is None
        assert 'name="mst",replica="local",version="4"} 1.0' in client.get("/metrics").text
        done.set()
        annotator.join()
        assert {status for status, _ in seen} == {200}
        answered = [version for _, version in seen]
        assert answered == sorted(answered)  # never back, and never the broken one
        assert {"1", "2"} <= set(answered) <= {"1", "2", "4"}

        MlflowClient(registry, registry).set_registered_model_alias("mst", "challenger", "1")
        other = client.post(path, json={"clicks": CLICKS}, headers={"X-Model-Alias": "challenger"})
        assert other.json()["model"]["version"] == "1"
        wrong = client.post(path, json={"clicks": CLICKS}, headers={"X-Model-Alias": "nobody"})
        assert wrong.status_code == 404


def test_what_starts_anew_while_the_champion_is_broken_serves_the_one_before_it(registry, tmp_path):
    for number, bias in ((1, 0.0), (2, 0.0), (3, float("nan"))):
        crown(registry, random_checkpoint(tmp_path / str(number), number, bias))
    settings = ServeSettings(
        model="models:/mst@champion", image_store=str(tmp_path / "images"), max_batch=1, precision="fp32"
    )
    with versioned(settings, first="models:/mst/1") as url:
        reply = httpx.get(f"{url}/readyz", timeout=30)
    assert reply.json()["version"] == "2"
    assert "no numbers" in reply.json()["rejected"]["reason"]


def test_nobody_is_told_where_the_registry_is(registry, tmp_path):
    crown(registry, random_checkpoint(tmp_path / "one", 1))
    settings = ServeSettings(model="models:/mst@champion", image_store=str(tmp_path / "images"), max_batch=1)
    with versioned(settings) as url:
        body = {"image": base64.b64encode(png(picture())).decode(), "clicks": CLICKS}
        reply = httpx.post(
            f"{url}/v1/segment", json=body, headers={"X-Model-Alias": "challenger"}, timeout=30
        )
    assert reply.status_code == 404
    assert "models:/mst@challenger" in reply.text
    assert str(tmp_path) not in reply.text
    assert "sqlite" not in reply.text


def test_a_version_whose_settings_were_changed_is_refused(registry, tmp_path):
    folder = random_checkpoint(tmp_path / "one", 1)
    crown(registry, folder)
    model, _ = load_model(folder)
    save_checkpoint(folder, model.state_dict(), Config(model=TINY_MODEL, eval=EvalConfig(threshold=0.9)))
    with pytest.raises(CheckpointError, match="its settings are not those that were registered"):
        fetch_model(pin(ServeSettings(model="models:/mst@champion")), tmp_path / "fetched")


def test_an_alias_that_is_not_there_is_looked_up_once_in_a_while(registry, tmp_path):
    crown(registry, random_checkpoint(tmp_path / "one", 1))
    settings = ServeSettings(
        model="models:/mst@champion", image_store=str(tmp_path / "images"), max_batch=1, poll_seconds=2
    )
    with versioned(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        path = f"/v1/images/{client.post('/v1/images', content=png(picture())).json()['image_id']}/mask"

        def status() -> int:
            headers = {"X-Model-Alias": "challenger"}
            return client.post(path, json={"clicks": CLICKS}, headers=headers).status_code

        assert status() == 404
        MlflowClient(registry, registry).set_registered_model_alias("mst", "challenger", "1")
        assert status() == 404  # as it was told two seconds ago
        assert wait_for(lambda: status() == 200, 10) < 10
