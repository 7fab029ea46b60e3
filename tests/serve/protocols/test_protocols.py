"""What holds for all protocols: keys, errors each in its own form, and whatever else may come.

One by one: test_cvat, test_label_studio, test_x_anylabeling, test_open_inference, test_mlflow_scoring.
What the clients themselves make of it: test_clients (make test-clients).
"""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import requests
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from serve.errors import OverloadedError
from serve.protocols import label_studio as label_studio_backend
from serve.protocols import mlflow_scoring, open_inference
from serve.protocols import x_anylabeling as x_anylabeling_server
from serve.protocols.failures import route_that_says
from serve.settings import ServeSettings
from tests.conftest import listening, local_api
from tests.protocol_calls import CVAT, INPUTS, RECORD, x_anylabeling
from tests.serve.protocols.test_label_studio import keypoint
from tests.serve.protocols.test_label_studio import request as label_studio

# Keys


@pytest.fixture(scope="module")
def locked(checkpoint, tmp_path_factory) -> Iterator[str]:
    """A server that wants a key."""
    store = str(tmp_path_factory.mktemp("images"))
    settings = ServeSettings(model=str(checkpoint), image_store=store, precision="fp32")
    with listening(local_api(settings, KEY)) as url:
        yield url


KEY = "a-key-of-24-characters--"
CALLS = [
    ("POST", "/", CVAT),  # though GET / is the page, which is free
    ("GET", "/api/functions", None),
    ("POST", "/api/function_invocations", CVAT),
    ("POST", "/v1/predict", x_anylabeling()),
    ("GET", "/v2", None),
    ("POST", "/invocations", {"inputs": [RECORD]}),
    ("POST", "/setup", {}),
    ("POST", "/predict", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS, ids=[f"{call[0]} {call[1]}" for call in CALLS])
def test_no_protocol_answers_without_the_key(locked, method, path, body):
    reply = httpx.request(method, locked + path, json=body)
    assert reply.status_code == 401
    assert "API key" in reply.json()["error"]  # Triton's client fails on a reply without it


def test_each_tool_has_a_way_to_send_the_key(locked, mask):
    ways = {
        "x-anylabeling": {"headers": {"Token": KEY}},
        "label studio's basic authentication": {"auth": ("mst", KEY)},
        "triton": {"headers": {"Authorization": f"Bearer {KEY}"}},
    }
    for way in ways.values():
        assert httpx.get(f"{locked}/v1/models", **way).is_success
    # CVAT can set no header; the host of its gateway can hold the key, which `requests` sends.
    with_key = locked.replace("http://", f"http://mst:{KEY}@")
    assert requests.get(f"{with_key}/api/functions").status_code == 200
    answer = requests.post(f"{with_key}/api/function_invocations", json=CVAT).json()
    np.testing.assert_array_equal(np.array(answer["mask"]), mask)


# Whatever comes


def test_what_is_no_json_is_said_so(http):
    for content in (b"", b"{", b"[" * 50_000, b"\xff"):
        headers = {"Content-Type": "application/json"}
        for path in ("/invocations", "/predict", "/", "/v1/predict", "/v2/models/x/infer"):
            reply = http.post(path, content=content, headers=headers)
            assert 400 <= reply.status_code < 500, (path, content[:5])
    assert http.post("/invocations", content=b"a,b", headers={"Content-Type": "text/csv"}).status_code == 400


def test_a_server_that_is_full_says_so_in_each_form_and_when_to_come_back():
    async def fail() -> None:
        raise OverloadedError("too much to do")

    for say, read in (
        (open_inference._say, lambda body: body["error"]),
        (mlflow_scoring._say, lambda body: body["message"]),
        (x_anylabeling_server._say, lambda body: body["error"]["message"]),
        (label_studio_backend._say, lambda body: body["detail"]),
    ):
        app, routes = FastAPI(), APIRouter(route_class=route_that_says(say))
        routes.add_api_route("/", fail)
        app.include_router(routes)
        reply = TestClient(app).get("/")
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert read(reply.json()) == "too much to do"


def test_the_routes_are_described_without_a_clash(http):
    paths = http.get("/openapi.json").json()["paths"]
    names = [each["operationId"] for path in paths.values() for each in path.values()]
    assert len(set(names)) == len(names)
    assert {"/api/function_invocations", "/predict", "/v1/predict", "/v2/models/{name}/infer"} <= set(paths)


ODD = [
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "x",
    "\x00",
    [],
    [[]],
    {},
    {"": 1},
    [None],
    "data:;base64,",
    "NaN",
]
VALID = [
    ("/", CVAT),
    ("/v1/predict", x_anylabeling()),
    ("/v2/models/MODEL/infer", {"id": "1", "inputs": INPUTS, "outputs": [{"name": "mask"}]}),
    ("/invocations", {"inputs": [RECORD]}),
    ("/invocations", {"dataframe_split": {"columns": list(RECORD), "data": [list(RECORD.values())]}}),
    ("/predict", label_studio(keypoint(50, 50), keypoint(10, 90, is_positive=False))),
]


def places(value, path=()) -> list[tuple]:
    """Where something else could stand in a body."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for key, part in inside for each in places(part, (*path, key)))]


def with_odd(value, path, odd):
    if not path:
        return odd
    copy = value.copy()
    copy[path[0]] = with_odd(copy[path[0]], path[1:], odd)
    return copy


@pytest.mark.parametrize(("path", "body"), VALID, ids=[path for path, _ in VALID])
def test_no_body_makes_a_protocol_fail(http, checkpoint, path, body):
    path, seen = path.replace("MODEL", checkpoint.parent.name), set()
    assert http.post(path, json=body).status_code == 200
    for place in places(body):
        for odd in ODD:
            text = json.dumps(with_odd(body, place, odd)).replace('"NaN"', "NaN")
            reply = http.post(path, content=text, headers={"Content-Type": "application/json"})
            assert reply.status_code < 500, (place, odd, reply.text)
            assert reply.status_code == 200 or reply.json(), (place, odd)
            seen.add(reply.status_code)
    assert {200, 422} & seen
