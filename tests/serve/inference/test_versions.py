"""Which version answers: the one that an alias names, unless it is broken; without Ray."""

import base64
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from mlflow import MlflowClient

from benchmarks.shared.serving import make_champion, wait_for
from mst.checkpoint import load_model, save_checkpoint
from mst.config import Config, EvalConfig
from mst.errors import CheckpointError
from mst.model import MST
from serve.app import settle
from serve.http.api import build_api
from serve.http.keys import Keys
from serve.inference.registry import fetch_model, pin
from serve.inference.segmenter import Segmenter
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.core import Core
from tests.conftest import TINY_MODEL, listening, picture, png

CLICKS = [{"x": 30, "y": 20}, {"x": 100, "y": 50}]


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
    make_champion(registry, random_checkpoint(tmp_path / "one", 1))
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
        make_champion(registry, random_checkpoint(tmp_path / "two", 2))
        assert wait_for(lambda: client.get("/readyz").json()["version"] == "2", 30) < 30
        make_champion(registry, random_checkpoint(tmp_path / "three", 3, bias=float("nan")))
        assert wait_for(lambda: client.get("/readyz").json()["rejected"], 30) < 30
        ready = client.get("/readyz").json()
        assert ready["version"] == "2"
        assert ready["rejected"]["model"] == "models:/mst/3"
        assert "no numbers" in ready["rejected"]["reason"]
        make_champion(registry, random_checkpoint(tmp_path / "four", 4))
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
        make_champion(registry, random_checkpoint(tmp_path / str(number), number, bias))
    settings = ServeSettings(
        model="models:/mst@champion", image_store=str(tmp_path / "images"), max_batch=1, precision="fp32"
    )
    with versioned(settings, first="models:/mst/1") as url:
        reply = httpx.get(f"{url}/readyz", timeout=30)
    assert reply.json()["version"] == "2"
    assert "no numbers" in reply.json()["rejected"]["reason"]


def test_nobody_is_told_where_the_registry_is(registry, tmp_path):
    make_champion(registry, random_checkpoint(tmp_path / "one", 1))
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
    make_champion(registry, folder)
    model, _ = load_model(folder)
    save_checkpoint(folder, model.state_dict(), Config(model=TINY_MODEL, eval=EvalConfig(threshold=0.9)))
    with pytest.raises(CheckpointError, match="its settings are not those that were registered"):
        fetch_model(pin(ServeSettings(model="models:/mst@champion")), tmp_path / "fetched")


def test_an_alias_that_is_not_there_is_looked_up_once_in_a_while(registry, tmp_path):
    make_champion(registry, random_checkpoint(tmp_path / "one", 1))
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
