"""MLflow's scoring over the wire: the server's own mask of the same clicks is what must come back."""

import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from pycocotools import mask as coco_mask

from tests.protocol_calls import IMAGE, NO_IMAGE, RECORD


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
