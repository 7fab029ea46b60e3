"""The Open Inference Protocol over the wire: the server's own mask of the same clicks must come back."""

import json
import time

import httpx
import numpy as np
import pytest

from serve.errors import RequestError
from serve.protocols.tensors import Parameters, Tensor, pack, unpack
from tests.conftest import picture, png
from tests.protocol_calls import CLICKS_TENSOR, HEIGHT, INPUTS, NO_IMAGE, WIDTH, tensor


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


def test_a_mask_is_written_as_json_without_a_number_for_each_pixel():
    mask = np.random.default_rng(0).random((1500, 2000)) > 0.5
    start = time.perf_counter()
    numbers = json.dumps(mask.ravel().astype(np.uint8).tolist())
    slowly = time.perf_counter() - start
    start = time.perf_counter()
    body = pack({"model_name": "m\u00e9"}, {"mask": ("UINT8", mask)}, set()).body
    assert time.perf_counter() - start < slowly / 3  # and Python answers nobody else meanwhile
    reply = json.loads(body)
    assert (reply["model_name"], reply["outputs"][0]["shape"]) == ("m\u00e9", [1500, 2000])
    assert reply["outputs"][0]["data"] == json.loads(numbers)
    assert b"true" not in body


def test_more_numbers_than_json_can_carry_are_asked_for_in_binary():
    numbers = np.random.default_rng(0).random((1024, 1024), np.float32)
    for array in (numbers, numbers[:, :1] * 1e-30):
        (output,) = json.loads(pack({"id": "1"}, {"p": ("FP32", array)}, set()).body)["outputs"]
        np.testing.assert_array_equal(np.array(output["data"], np.float32).reshape(array.shape), array)
    more = {"p": ("FP32", np.zeros((1025, 1024), np.float32))}
    with pytest.raises(
        RequestError, match=r"'p' has 1049600 numbers, JSON at most 1048576: .*binary_data_output"
    ):
        pack({"id": "1"}, more, set())
    assert pack({"id": "1"}, more, {"p"}).body.endswith(bytes(4 * 1025 * 1024))


def test_a_tensor_of_a_million_empty_strings_is_refused():
    size = 4 * 10**6
    strings = Tensor(
        name="image", datatype="BYTES", shape=[10**6], parameters=Parameters(binary_data_size=size)
    )
    with pytest.raises(RequestError, match="'image' has more than 1000 elements"):
        unpack([strings], bytes(size))


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
        ({"inputs": [*INPUTS, tensor("prior", "FP32", [[0.5] * 140] * 90)]}, 422, "the mask is of float32"),
        ({"inputs": [*INPUTS, tensor("prior", "UINT8", [[0, 7] * 70] * 90)]}, 422, "the values [7] beside 0"),
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
