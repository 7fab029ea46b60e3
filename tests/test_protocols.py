"""Each protocol as it goes over the wire: the server's own mask of the same clicks is what must come back.

What the clients themselves make of it: tests/test_protocols_clients.py (make test-clients).
"""

import base64
import json
from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pandas as pd
import pytest
import requests
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from pycocotools import mask as coco_mask

from mst.clicks import Click
from mst.client import Client
from serve.errors import OverloadedError
from serve.protocols import label_studio as label_studio_backend
from serve.protocols import mlflow_scoring, open_inference
from serve.protocols import x_anylabeling as x_anylabeling_server
from serve.protocols.failures import route_that_says
from serve.settings import ServeSettings
from tests.conftest import listening, local_api, picture, png
from tests.test_label_studio import keypoint
from tests.test_label_studio import request as label_studio

HEIGHT, WIDTH = 90, 140
CLICKS = [Click(20, 30, True), Click(50, 100, True), Click(70, 10, False)]
IMAGE = base64.b64encode(png(picture())).decode()
NO_IMAGE = base64.b64encode(b"no image").decode()
XY = [[click.col, click.row] for click in CLICKS]


@pytest.fixture(scope="module")
def http(local) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=local, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def mask(local):
    """What the clicks mean."""
    answer = Client(local).segment(picture(), CLICKS)
    assert 0.02 < answer.mask.mean() < 0.98
    return answer.mask


def filled(rings) -> np.ndarray:
    """Polygons as a mask, by even and odd; their coordinates run along the pixels' borders."""
    out = np.zeros((HEIGHT, WIDTH), bool)
    for ring in rings:
        flat = [coordinate for point in ring for coordinate in point]
        out ^= coco_mask.decode(coco_mask.frPyObjects([flat], HEIGHT, WIDTH)[0]).astype(bool)
    return out


def without_holes(mask) -> np.ndarray:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED).astype(bool)


def iou(one, other) -> float:
    return (one & other).sum() / (one | other).sum()


# CVAT

CVAT = {"image": IMAGE, "pos_points": XY[:2], "neg_points": XY[2:], "obj_bbox": None}


def test_cvat_finds_one_interactor(http, checkpoint):
    functions = http.get("/api/functions", headers={"x-nuclio-project-name": "cvat"}).json()
    assert functions == {"mst": http.get("/api/functions/mst").json()}
    annotations = functions["mst"]["metadata"]["annotations"]
    assert annotations["type"] == "interactor"
    assert all(isinstance(value, str) for value in annotations.values())  # as in Nuclio
    assert "startswith_box" not in annotations  # CVAT would take any text for true
    assert functions["mst"]["status"]["httpPort"] == http.base_url.port
    assert checkpoint.name in functions["mst"]["spec"]["description"]
    assert http.get("/api/functions/other").status_code == 404


@pytest.mark.parametrize("path", ["/api/function_invocations", "/"])
def test_cvat_gets_the_mask_in_rows_and_the_outline_of_its_largest_part(http, mask, path):
    reply = http.post(path, json=CVAT, headers={"x-nuclio-function-name": "mst", "x-nuclio-path": "/"})
    answer = reply.json()
    np.testing.assert_array_equal(np.array(answer["mask"]), mask)
    count, parts = cv2.connectedComponents(without_holes(mask).astype(np.uint8))
    largest = max((parts == number for number in range(1, count)), key=np.sum)
    assert iou(filled([answer["points"]]), largest) > 0.95


def test_cvat_may_send_an_empty_box_a_box_and_a_threshold(http, mask):
    answer = http.post("/", json={**CVAT, "obj_bbox": [], "threshold": 0.9}).json()
    strict = np.array(answer["mask"], bool)
    assert strict.sum() < mask.sum()
    assert not (strict & ~mask).any()
    assert http.post("/", json={**CVAT, "obj_bbox": [[10, 5], [130.5, 80]]}).status_code == 200


def test_a_click_on_the_far_border_is_one_on_the_last_pixel(http, local):
    answer = http.post("/", json={**CVAT, "pos_points": [[WIDTH, HEIGHT]], "neg_points": []}).json()
    expected = Client(local).segment(picture(), [Click(HEIGHT - 1, WIDTH - 1, True)]).mask
    np.testing.assert_array_equal(np.array(answer["mask"]), expected)


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ({"image": "?"}, 422, "base64"),
        ({"image": NO_IMAGE}, 415, "not an image"),
        ({"pos_points": [[WIDTH + 1, 0]]}, 422, "outside the image"),
        ({"pos_points": [[1]]}, 422, "pos_points"),
        ({"pos_points": [[0, 0]] * 201}, 422, "200"),
        ({"pos_points": []}, 422, "positive"),
        ({"obj_bbox": [[1, 1]]}, 422, "obj_bbox"),
        ({"obj_bbox": [[200, 200], [300, 300]]}, 422, "no pixel"),
        ({"threshold": 1.5}, 422, "threshold"),
    ],
)
def test_cvat_is_told_what_is_wrong(http, wrong, status, message):
    reply = http.post("/api/function_invocations", json={**CVAT, **wrong})
    assert reply.status_code == status
    assert message in reply.text


# X-AnyLabeling

MARKS = [
    {"type": "point", "data": xy, "label": int(click.is_positive)}
    for xy, click in zip(XY, CLICKS, strict=True)
]


def x_anylabeling(**more) -> dict:
    params = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001, "marks": MARKS}
    return {"model": "mst", "image": f"data:image/png;base64,{IMAGE}", "params": params, **more}


def test_x_anylabeling_gets_a_closed_polygon_for_each_part(http, mask):
    models = http.get("/v1/models", headers={"Token": ""}).json()
    assert models["success"]
    assert {"name": "button_add_point", "value": None} in models["data"]["mst"]["widgets"]
    assert http.get("/v1/models/mst/info").json() == {"success": True, "data": models["data"]["mst"]}
    answer = http.post("/v1/predict", json=x_anylabeling()).json()
    assert answer["success"]
    shapes = answer["data"]["shapes"]
    assert all(shape["points"][0] == shape["points"][-1] for shape in shapes)
    assert {(shape["label"], shape["shape_type"]) for shape in shapes} == {("AUTOLABEL_OBJECT", "polygon")}
    union = np.any([filled([shape["points"]]) for shape in shapes], axis=0)
    assert iou(union, without_holes(mask)) > 0.95


def test_x_anylabeling_without_marks_gets_no_shapes(http):
    answer = http.post("/v1/predict", json=x_anylabeling(params={"marks": []})).json()
    assert (answer["success"], answer["data"]["shapes"]) == (True, [])


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ({"model": "sam"}, 404, "no model 'sam'"),
        ({"image": f"data:image/png;base64,{NO_IMAGE}"}, 415, "not an image"),
        ({"image": "x"}, 422, "base64"),
        ({"params": {"marks": [{"type": "point", "data": [1, 2, 3, 4], "label": 1}]}}, 422, "coordinates"),
        ({"params": {"marks": [{"type": "point", "data": [500, 2], "label": 1}]}}, 422, "outside"),
        ({"params": {"marks": [{"type": "point", "data": [5, 2], "label": 0}]}}, 422, "positive"),
    ],
)
def test_x_anylabeling_is_told_what_is_wrong(http, wrong, status, message):
    reply = http.post("/v1/predict", json=x_anylabeling(**wrong))
    assert reply.status_code == status  # with 200 the tool would show nothing
    assert not reply.json()["success"]
    assert message in reply.json()["error"]["message"]


# Open Inference Protocol

CLICKS_TENSOR = [[*xy, int(click.is_positive)] for xy, click in zip(XY, CLICKS, strict=True)]


def tensor(name, datatype, data, shape=None) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or list(np.shape(data)), "data": data}


INPUTS = [tensor("image", "BYTES", [IMAGE]), tensor("clicks", "FP32", CLICKS_TENSOR)]


@pytest.fixture
def v2(http, checkpoint) -> str:
    """The path of the model."""
    return f"/v2/models/{checkpoint.parent.name}"


def outputs(reply: httpx.Response) -> dict:
    assert reply.status_code == 200, reply.text
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in reply.json()["outputs"]}


def test_an_inference_server_describes_itself(http, v2, checkpoint):
    assert http.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert http.get("/v2/health/live").is_success
    assert http.get("/v2/health/ready").is_success
    for path in (v2, f"{v2}/versions/{checkpoint.name}"):
        model = http.get(path).json()
        assert model["versions"] == [checkpoint.name]
        assert [each["name"] for each in model["inputs"]] == ["image", "clicks", "box", "prior"]
        assert http.get(f"{path}/ready").json()["ready"]
    for path in ("/v2/models/other", f"{v2}/versions/9", f"{v2}/versions/9/ready"):
        reply = http.get(path)
        assert (reply.status_code, list(reply.json())) == (404, ["error"])


def test_tensors_in_json_give_the_mask(http, v2, mask, checkpoint):
    reply = http.post(f"{v2}/infer", json={"id": "42", "inputs": INPUTS})
    got = outputs(reply)
    assert (reply.json()["id"], reply.json()["model_version"]) == ("42", checkpoint.name)
    assert list(got) == ["mask", "score"]
    np.testing.assert_array_equal(got["mask"], mask)
    names = ["mask", "score", "bbox", "probabilities"]
    more = outputs(
        http.post(
            f"{v2}/versions/{checkpoint.name}/infer",
            json={"inputs": INPUTS, "outputs": [{"name": name} for name in names]},
        )
    )
    assert list(more) == names
    rows, cols = np.nonzero(mask)
    assert more["bbox"].tolist() == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
    assert 0 < more["score"][0] < 1
    assert more["probabilities"][mask].min() > more["probabilities"][~mask].max()


def test_pixels_and_other_number_types_do_as_well(http, v2, mask):
    pixels = tensor("image", "UINT8", picture().ravel().tolist(), [HEIGHT, WIDTH, 3])
    for datatype in ("INT64", "FP64"):
        sent = [pixels, tensor("clicks", datatype, CLICKS_TENSOR)]
        np.testing.assert_array_equal(outputs(http.post(f"{v2}/infer", json={"inputs": sent}))["mask"], mask)


def test_tensors_in_binary_give_the_mask(http, v2, mask):
    file, clicks = png(picture()), np.array(CLICKS_TENSOR, "<f4").tobytes()
    data = [len(file).to_bytes(4, "little") + file, clicks]
    sent = [
        {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(part)}}
        for name, kind, shape, part in zip(
            ("image", "clicks"), ("BYTES", "FP32"), ([1], [3, 3]), data, strict=True
        )
    ]
    text = json.dumps({"inputs": sent, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    reply = http.post(f"{v2}/infer", content=b"".join([text, *data]), headers=headers)
    assert reply.status_code == 200, reply.text
    length = int(reply.headers["Inference-Header-Content-Length"])
    first, second = json.loads(reply.content[:length])["outputs"]
    assert (first["name"], first["shape"], second["name"]) == ("mask", [HEIGHT, WIDTH], "score")
    tail = reply.content[length:]
    size = first["parameters"]["binary_data_size"]
    np.testing.assert_array_equal(np.frombuffer(tail[:size], np.uint8).reshape(HEIGHT, WIDTH), mask)
    assert len(tail) - size == second["parameters"]["binary_data_size"] == 4

    for length, body in (("9999999", text), ("-1", text), ("x", text), (str(len(text)), text + b"abc")):
        reply = http.post(f"{v2}/infer", content=body, headers={"Inference-Header-Content-Length": length})
        assert reply.status_code == 422, (length, reply.text)
        assert reply.json()["error"]


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ({"inputs": INPUTS[1:]}, 422, "'image' is missing"),
        ({"inputs": INPUTS[:1]}, 422, "positive"),
        ({"inputs": [*INPUTS, tensor("x", "FP32", [1.0])]}, 422, "unknown input 'x'"),
        ({"inputs": [INPUTS[0], tensor("clicks", "FP32", [[1, 2, 1]], [2, 3])]}, 422, "3 elements"),
        ({"inputs": [INPUTS[0], tensor("clicks", "FP32", [[1, 2]])]}, 422, "[N, 3]"),
        ({"inputs": [INPUTS[0], tensor("clicks", "FP32", [[1, 2, 3]])]}, 422, "third number"),
        ({"inputs": [INPUTS[0], tensor("clicks", "FP32", ["a", "b", "c"])]}, 422, "not all FP32"),
        ({"inputs": [INPUTS[0], tensor("clicks", "FP32", [[1], [2, 3]], [1, 3])]}, 422, "not all FP32"),
        ({"inputs": [INPUTS[0], tensor("clicks", "COMPLEX", [1])]}, 422, "unknown datatype"),
        ({"inputs": [INPUTS[0], tensor("clicks", "FP32", [[500, 2, 1]])]}, 422, "outside"),
        ({"inputs": [tensor("image", "BYTES", [NO_IMAGE]), INPUTS[1]]}, 415, "not an image"),
        ({"inputs": [tensor("image", "BYTES", ["?"]), INPUTS[1]]}, 422, "base64"),
        ({"inputs": [tensor("image", "BYTES", [1]), INPUTS[1]]}, 422, "base64"),
        ({"inputs": [tensor("image", "UINT8", [1, 2, 3]), INPUTS[1]]}, 422, "[H, W, 3]"),
        ({"inputs": [*INPUTS, tensor("box", "FP32", [1, 2, 3])]}, 422, "four numbers"),
        ({"inputs": [*INPUTS, tensor("prior", "UINT8", [[1]])]}, 422, "the image's shape"),
        ({"inputs": INPUTS, "outputs": [{"name": "masks"}]}, 422, "unknown output 'masks'"),
        ({"inputs": INPUTS, "parameters": {"threshold": 0}}, 422, "threshold"),
        ({}, 422, "inputs"),
    ],
)
def test_an_inference_client_is_told_what_is_wrong(http, v2, wrong, status, message):
    reply = http.post(f"{v2}/infer", json=wrong)
    assert reply.status_code == status, reply.text
    assert message in reply.json()["error"]
    assert http.post(f"{v2}/infer", content=b"{").json()["error"]


# MLflow

RECORD = {
    "image": IMAGE,
    "clicks": [{"x": c.col, "y": c.row, "is_positive": c.is_positive} for c in CLICKS],
}


def test_mlflows_own_client_gets_the_mask(http, mask):
    client = ScoringServerClient(http.base_url.host, http.base_url.port)
    client.ping()
    assert client.get_version().startswith("3.")
    answer = client.invoke(pd.DataFrame([RECORD]))["predictions"]
    np.testing.assert_array_equal(coco_mask.decode(answer[0]["mask"]), mask)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [RECORD, RECORD]},
        {"inputs": {name: [value, value] for name, value in RECORD.items()}},
        {"instances": [RECORD, RECORD]},
        {"dataframe_records": [RECORD, RECORD]},
        {"dataframe_split": {"index": [0, 1], "columns": list(RECORD), "data": [list(RECORD.values())] * 2}},
    ],
    ids=["inputs", "columns", "instances", "records", "split"],
)
def test_records_come_in_all_of_mlflows_forms(http, mask, body):
    reply = http.post("/invocations", json={**body, "params": {"format": "rle"}})
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["predictions"]) == 2
    for prediction in reply.json()["predictions"]:
        np.testing.assert_array_equal(coco_mask.decode(prediction["mask"]), mask)


@pytest.mark.parametrize(
    ("wrong", "status", "message"),
    [
        ({}, 400, "exactly one of"),
        ({"inputs": [RECORD], "instances": [RECORD]}, 400, "exactly one of"),
        ({"inputs": [{"image": IMAGE}]}, 400, "clicks"),
        ({"inputs": [{**RECORD, "image": NO_IMAGE}]}, 415, "not an image"),
        ({"inputs": [RECORD], "params": {"format": "gif"}}, 400, "format"),
        ({"inputs": {"image": [IMAGE], "clicks": []}}, 400, "different lengths"),
        ({"dataframe_split": {"columns": ["image"], "data": [[1, 2]]}}, 400, "another length"),
        ({"instances": [{}] * 101}, 400, "at most 100"),
        ([1], 400, ""),
    ],
)
def test_an_mlflow_client_is_told_what_is_wrong(http, wrong, status, message):
    reply = http.post("/invocations", json=wrong)
    assert reply.status_code == status, reply.text
    assert message in reply.json()["message"]
    assert reply.json()["error_code"]


def test_what_is_no_json_is_said_so(http):
    for content in (b"", b"{", b"[" * 50_000, b"\xff"):
        headers = {"Content-Type": "application/json"}
        for path in ("/invocations", "/predict", "/", "/v1/predict", "/v2/models/x/infer"):
            reply = http.post(path, content=content, headers=headers)
            assert 400 <= reply.status_code < 500, (path, content[:5])
    assert http.post("/invocations", content=b"a,b", headers={"Content-Type": "text/csv"}).status_code == 400


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
