"""The registered model as MLflow runs it, against the library's own predictor."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from pycocotools import mask as coco_mask
from upath import UPath

from mst.checkpoint import WEIGHTS, copy_for_use, load_model, save_checkpoint, verify
from mst.clicks import Click
from mst.config import Config
from mst.errors import CheckpointError
from mst.model import MST
from mst.predictor import Predictor
from pipelines.cluster import free_port
from pipelines.registry.package import package
from pipelines.registry.versions import Promotion, log_model, register, registry_client, snapshot
from pipelines.storage import PROJECT
from pipelines.training.tracking import open_run
from tests.conftest import TINY_MODEL, picture, png
from tests.stores import Server

TRAINED = PROJECT / "checkpoints" / "scenes_tiny"
CLICKS = [{"x": 60.0, "y": 40.0, "is_positive": True}, {"x": 100.0, "y": 70.0, "is_positive": False}]


@pytest.fixture
def packaged(tmp_path) -> Path:
    """A trained model, as it is logged."""
    copy_for_use(TRAINED, tmp_path / "checkpoint")
    package(tmp_path / "checkpoint", tmp_path / "model")
    return tmp_path / "model"


def asked(image, clicks=CLICKS) -> list[dict]:
    # Copies, since MLflow converts the numbers of a click in place.
    return [{"image": base64.b64encode(png(image)).decode(), "clicks": [dict(each) for each in clicks]}]


def expected(image) -> np.ndarray:
    model, config = load_model(TRAINED)
    clicks = [Click(int(each["y"]), int(each["x"]), each["is_positive"]) for each in CLICKS]
    return Predictor(model, config.eval).open(image)(clicks)


def decoded(mask: dict) -> np.ndarray:
    return coco_mask.decode({**mask, "counts": mask["counts"].encode()}).astype(bool)


def test_the_mask_is_the_librarys(packaged):
    image = picture()
    answer = mlflow.pyfunc.load_model(str(packaged)).predict(pd.DataFrame(asked(image) * 2))
    assert len(answer) == 2
    for each in answer:
        np.testing.assert_array_equal(decoded(each["mask"]), expected(image))
        assert 0 < each["score"] < 1


def test_nothing_is_pickled_and_everything_pinned(packaged):
    files = [each for each in packaged.rglob("*") if each.is_file()]
    assert not [each for each in files if each.suffix in (".pkl", ".pickle", ".pt", ".pth", ".pyc")]
    assert (packaged / "code" / "mst" / "predictor.py").is_file()
    lines = (packaged / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    pinned = set((PROJECT / "constraints.txt").read_text().lower().replace("_", "-").splitlines())
    assert {line.lower() for line in lines} <= pinned


def test_other_weights_are_refused(packaged, tmp_path):
    other = tmp_path / "other"
    save_checkpoint(other, MST(TINY_MODEL).state_dict(), Config(model=TINY_MODEL))
    checkpoint = packaged / "artifacts" / "checkpoint"
    for file in other.iterdir():  # a whole checkpoint, whose own manifest agrees with it
        (checkpoint / file.name).write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="not those that were registered"):
        mlflow.pyfunc.load_model(str(packaged))


def test_damaged_weights_are_refused(packaged):
    weights = packaged / "artifacts" / "checkpoint" / WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        mlflow.pyfunc.load_model(str(packaged))


def test_a_reader_can_insist_on_the_digest_that_the_registry_has(packaged):
    digest = verify(TRAINED)["sha256"][WEIGHTS]
    mlflow.pyfunc.load_model(str(packaged), model_config={"weights_sha256": digest})
    with pytest.raises(CheckpointError, match="not those that were registered"):
        mlflow.pyfunc.load_model(str(packaged), model_config={"weights_sha256": "0" * 64})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "?", "clicks": CLICKS}, "row 0: the image is no base64"),
        ({"image": base64.b64encode(b"text").decode(), "clicks": CLICKS}, "row 0: .*not an image"),
        (asked(picture(), CLICKS[1:])[0], "row 0: at least one positive click"),
        (asked(picture(), [{**CLICKS[0], "x": 500.0}])[0], "row 0: click 1 at .* lies outside"),
        (asked(picture(), [{"x": 1.0, "y": 1.0}])[0], "is_positive"),
        ({"clicks": CLICKS}, "missing inputs"),
    ],
)
def test_a_wrong_row_is_named(packaged, row, message):
    model = mlflow.pyfunc.load_model(str(packaged))
    with pytest.raises(MlflowException, match=message):
        model.predict(pd.DataFrame([row]))


@pytest.mark.services
def test_it_runs_in_a_clean_environment(packaged, registry, scenes, tmp_path):
    """What `requirements.txt` names and nothing else: several GB and some minutes."""
    run = open_run(registry, UPath(tmp_path) / "run", Config(data={"root": str(scenes)}))
    client = registry_client(registry)
    register(
        client,
        snapshot(client),
        Promotion("first", "a test"),
        source=log_model(run, packaged, {}),
        run_id=run.run_id,
        tags={},
        description="",
    )
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    requirements = packaged / "requirements.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
    check_environment(python, tmp_path)


def check_environment(python: Path, tmp_path: Path) -> None:
    image, elsewhere = picture(), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "asked.json").write_text(json.dumps(asked(image)))
    script = (
        "import json, mlflow, pandas; model = mlflow.pyfunc.load_model('models:/mst@champion');"
        "print(json.dumps(model.predict(pandas.DataFrame(json.load(open('asked.json'))))))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"  # as an activated one has it
    done = subprocess.run(
        [python, "-c", script], cwd=elsewhere, env=environment, capture_output=True, text=True, check=True
    )
    np.testing.assert_array_equal(decoded(json.loads(done.stdout)[0]["mask"]), expected(image))

    port = free_port()
    command = ("-m", "mlflow", "models", "serve", "-m", "models:/mst@champion", "--env-manager", "local")
    server = Server(*command, "-p", port, port=port, python=python, cwd=elsewhere, env=environment)
    try:
        answer = httpx.post(f"{server.url}/invocations", json={"dataframe_records": asked(image)}, timeout=60)
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(decoded(answer.json()["predictions"][0]["mask"]), expected(image))
        wrong = httpx.post(
            f"{server.url}/invocations", json={"dataframe_records": asked(image, CLICKS[1:])}, timeout=60
        )
        assert wrong.status_code == 400
        assert "at least one positive click" in wrong.text
    finally:
        server.kill()
