"""The door of the HTTP interface: who is let in, with how much, and what nobody should send."""

import asyncio
import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from serve.settings import ServeSettings
from tests.conftest import listening, local_api, picture, png

KEY = "annotators-0123456789"
CLICKS = [{"x": 30, "y": 20}, {"x": 100, "y": 50}]


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


# --- who is let in


def test_with_keys_all_but_the_page_and_the_probes_wants_one(serving):
    with serving(KEY) as url, httpx.Client(base_url=url) as client:
        for path in ("/", "/web/app.js", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/docs", "/openapi.json", "/v1/images", "/nowhere"):
            reply = client.get(path)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        asked = client.get("/docs", headers={"Accept": "text/html,*/*;q=0.8"}).headers["www-authenticate"]
        assert asked.startswith("Basic")  # a browser asks its user then
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


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://shown.example", "Sec-Fetch-Site": "same-origin"}, 201),  # behind a proxy
        ({"Sec-Fetch-Site": "none"}, 201),
        ({}, 201),
    ],
)
def test_a_page_of_another_site_stores_nothing_with_or_without_keys(serving, headers, status):
    """Browsers send such bodies without asking first."""
    for keys in ((), (KEY,)):
        with serving(*keys) as url:
            sent = {**headers, "Authorization": f"Bearer {KEY}"}
            assert httpx.post(f"{url}/v1/images", content=png(picture()), headers=sent).status_code == status


def test_the_servers_own_page_may_ask(serving):
    with serving() as url:
        assert httpx.post(f"{url}/v1/images", content=png(picture()), headers={"Origin": url}).is_success


def test_a_body_that_is_called_text_is_no_image_and_no_tensors(http, checkpoint):
    for path in ("/v1/images", f"/v2/models/{checkpoint.parent.name}/infer"):
        reply = http.post(path, content=png(picture()), headers={"Content-Type": "text/plain"})
        assert reply.status_code == 415
        assert "no form or text" in reply.json()["detail"]


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


def test_a_key_has_its_own_requests_in_hand_and_leaves_the_others_room(serving):
    other = KEY[::-1]
    with serving(KEY, other, requests_of_key=2) as url:
        headers = {"Authorization": f"Bearer {KEY}"}
        image_id = httpx.post(f"{url}/v1/images", content=png(picture()), headers=headers).json()["image_id"]

        def ask(number: int) -> httpx.Response:
            key = KEY if number else other
            clicks = {"clicks": [{"x": number, "y": click} for click in range(40)]}
            return httpx.post(
                f"{url}/v1/images/{image_id}/mask",
                json=clicks,
                timeout=60,
                headers={"Authorization": f"Bearer {key}"},
            )

        with ThreadPoolExecutor(9) as pool:
            others, *replies = list(pool.map(ask, range(9)))
        assert others.status_code == 200
        assert {reply.status_code for reply in replies} == {200, 429}
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert "requests with this key are in hand already" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"
        assert ask(1).status_code == 200


def test_many_images_at_once_are_all_answered_where_one_fits(serving):
    image = png(picture())
    with serving(pixels_in_hand=1) as url:

        async def ask() -> list[int]:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                bodies = [image + bytes(number) for number in range(12)]  # each another file
                replies = await asyncio.gather(*(client.post("/v1/images", content=each) for each in bodies))
            return [reply.status_code for reply in replies]

        assert set(asyncio.run(ask())) == {201}


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
