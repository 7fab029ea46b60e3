"""X-AnyLabeling over the wire: the server's own mask of the same clicks is what must come back."""

import numpy as np
import pytest

from tests.protocol_calls import NO_IMAGE, filled, iou, without_holes, x_anylabeling


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
