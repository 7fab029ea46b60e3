"""In tritonclient's environment: infer with tensors in JSON and in binary, and check that both say the same.

python triton_click.py SERVER IMAGE OUT.npy MODEL X,Y,LABEL ...
"""

import base64
import sys
from pathlib import Path

import numpy as np
from tritonclient.http import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)
from tritonclient.utils import np_to_triton_dtype

server, image, out, name, *points = sys.argv[1:]
clicks = np.array([[float(number) for number in point.split(",")] for point in points], "f4")
client = InferenceServerClient(server.removeprefix("http://"))
assert client.is_server_live()
assert client.is_server_ready()
assert client.is_model_ready(name)
metadata = client.get_model_metadata(name)
assert [each["name"] for each in metadata["outputs"]][:2] == ["mask", "score"]


def tensor(named: str, array: np.ndarray, binary: bool) -> InferInput:
    made = InferInput(named, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


file = Path(image).read_bytes()
answers = []
for binary in (True, False):
    data = np.array([file if binary else base64.b64encode(file)], dtype=object)
    inputs = [tensor("image", data, binary), tensor("clicks", clicks, binary)]
    outputs = [InferRequestedOutput(each, binary_data=binary) for each in ("mask", "score", "probabilities")]
    answers.append(client.infer(name, inputs, outputs=outputs, request_id="7"))
    assert answers[-1].get_response()["id"] == "7"
answers.append(client.infer(name, [tensor("image", data, False), tensor("clicks", clicks, True)]))
for answer in answers:
    np.testing.assert_array_equal(answer.as_numpy("mask"), answers[0].as_numpy("mask"))
    assert answer.as_numpy("score")[0] == answers[0].as_numpy("score")[0]
np.testing.assert_allclose(
    answers[1].as_numpy("probabilities"), answers[0].as_numpy("probabilities"), atol=1e-6
)
said = ""
try:
    client.infer(name, [tensor("clicks", clicks, True)])
except InferenceServerException as error:
    said = str(error)
assert "'image' is missing" in said
np.save(out, answers[0].as_numpy("mask") == 1)
