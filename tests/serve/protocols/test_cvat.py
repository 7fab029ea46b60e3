"""CVAT over the wire: the server's own mask of the same clicks is what must come back."""

import cv2
import numpy as np
import pytest

from mst.clicks import Click
from mst.client import Client
from tests.conftest import picture
from tests.protocol_calls import CVAT, HEIGHT, NO_IMAGE, WIDTH, filled, iou, without_holes


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
