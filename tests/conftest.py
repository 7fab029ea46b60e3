"""Small data and small models that the tests share."""

import asyncio
import faulthandler
import io
import os
import random
import runpy
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import ray
import torch
import uvicorn
import yaml
from fastapi import FastAPI
from mlflow import MlflowClient
from ray import serve
from upath import UPath

from mst.checkpoint import save_checkpoint
from mst.clicks import Click, Mask
from mst.client import Client
from mst.config import Config, ModelConfig
from mst.data.pixels.images import RGB
from mst.data.synthetic import write_data_set
from mst.evaluation import ObjectRecord
from mst.model import MST
from mst.overrides import flatten, override
from mst.predictor import Crop
from pipelines.cluster import Resources, connect, free_port
from pipelines.promotion.promote import Request, promote
from pipelines.storage import PROJECT
from pipelines.training.driver import Trained, train_driver
from pipelines.training.tracking import open_run
from serve.app import build
from serve.http.api import build_api
from serve.http.keys import Keys
from serve.inference.model import Answer, ServedModel, Version
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.core import Core
from tests.stores import S3

pytest_plugins = ["tests.stores"]

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"))
torch.set_num_threads(THREADS)


DIED = PROJECT / "out" / "a_process_of_the_tests_died"
"""Written where one died, for `tests/again.py`."""
CRASHES = pytest.StashKey[Any]()
"""What the process has as standard error when no test's output is captured."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the way to the terminal: pytest captures nothing yet."""
    config.stash[CRASHES] = os.fdopen(os.dup(2), "w")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        DIED.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have a crash print its stack: Ray takes the signals over, and prints into captured output."""
    faulthandler.disable()
    faulthandler.enable(file=item.config.stash[CRASHES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a process of the tests died: xdist says only that it did."""
    if error:
        code = node.gateway._io.popen.wait(30)
        line = f"\n{node.gateway.id} ended with {code}; a negative number is a signal's"
        node.config.pluginmanager.get_plugin("terminalreporter").write_line(line)
        DIED.parent.mkdir(exist_ok=True)
        DIED.write_text(f"{node.gateway.id}: {code}")


TINY_MODEL = ModelConfig(
    size="tiny", depth=2, fusion_stages=1, image_size=56, patch_size=8, patch_sizes=(4, 14)
)
LATE_MODEL = TINY_MODEL.model_copy(
    update={"click_entry": 2, "late_width": 64, "late_blocks": 1, "detail": True, "click_context": True}
)
"""The same, but clicks enter after all blocks, into a narrower part of their own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that draws an order of the tests."""
    parser.addoption("--order", type=int, metavar="SEED", help="run files and their tests in random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Draw the order of the files, and of the tests in each."""
    seed = config.getoption("--order")
    if seed is None:
        return
    rng = random.Random(seed)
    files = sorted({item.path for item in items})
    place = dict(zip(files, rng.sample(range(len(files)), len(files)), strict=True))
    rng.shuffle(items)
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What a test changes of this process is as it was when the next one begins."""
    torch.set_num_threads(THREADS)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what a test could leave changed
    torch.manual_seed(0)
    folder, environment, was_connected = Path.cwd(), dict(os.environ), ray.is_initialized()
    command_line = sys.argv
    yield
    os.chdir(folder)
    sys.argv = command_line
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
    if was_connected and not ray.is_initialized():
        connect(num_cpus=2)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    write_data_set(folder, (NUMBER, 4, 4), processes=2)
    return folder


@pytest.fixture
def config(scenes: Path) -> Config:
    """An experiment that trains in seconds."""
    return override(
        Config(model=TINY_MODEL),
        {
            "data.root": str(scenes),
            "data.resize": "4,12",
            "clicks.max_clicks": "3",
            "clicks.max_iterations": "1",
            "optim.lr": "1e-3",
            "optim.schedule": "constant",
            "train.epochs": "2",
            "train.samples_per_epoch": "16",
            "train.batch_size": "8",
            "train.log_every": "1",
            "train.val_objects": "3",
            "train.val_clicks": "2",
        },
    )


def command_here(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` in this process: one of its own would import torch, Ray and MLflow again."""
    texts = [str(each) for each in words]
    is_module = texts[0] == "-m"
    sys.argv = texts = texts[is_module:]
    os.chdir(PROJECT)
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            if is_module:
                runpy.run_module(texts[0], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(texts[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    if isinstance(status, str):  # what Python itself prints of it
        err.write(f"{status}\n")
        status = 1
    assert isinstance(status, int)
    return subprocess.CompletedProcess(texts, status, out.getvalue(), err.getvalue())


def as_options(config: Config) -> list[str]:
    """The options of a command line that give every setting the value that it has here."""

    def text(value: object) -> str:
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        return "null" if value is None else str(value)

    return [f"--{key}={text(value)}" for key, value in flatten(config).items()]


def random_mask(rng: np.random.Generator, height: int = 40, width: int = 50) -> Mask:
    """A few overlapping rectangles."""
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(1, 4)):
        top, left = rng.integers(height), rng.integers(width)
        mask[top : top + rng.integers(1, height), left : left + rng.integers(1, width)] ^= True
    return mask


NUMBER = 12
"""Training images of the scenes."""


def images(root: UPath) -> list[UPath]:
    """The training images of scenes."""
    return [root / "train" / f"{number:012d}.jpg" for number in range(NUMBER)]


@pytest.fixture(scope="session")
def cluster(s3: S3) -> Iterator[None]:
    """Ray on this machine, with two cores; its workers find S3 as the tests do."""
    connect(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture
def job() -> dict[str, Any]:
    """The job for KubeRay."""
    return yaml.safe_load((PROJECT / "deploy" / "kuberay" / "rayjob.yaml").read_text())


@pytest.fixture
def service() -> dict[str, Any]:
    """The server for KubeRay."""
    return yaml.safe_load((PROJECT / "deploy" / "kuberay" / "rayservice.yaml").read_text())


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, which takes MLflow seconds to set up."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    uri = f"sqlite:///{path}"
    MlflowClient(uri, uri).search_registered_models()
    return path


@pytest.fixture
def registry(new_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty MLflow database."""
    uri = f"sqlite:///{shutil.copy(new_database, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def train_here(config: Config, folder: UPath, uri: str, **options: Any) -> Trained:
    """Train in this process, as a trial of one worker does: for tests that ask nothing about Ray Train."""
    return train_driver(config, folder, Resources(), uri=uri, on_epoch=lambda _: None, **options)


@pytest.fixture
def late_champion(cluster: None, registry: str, scenes: Path, tmp_path: Path) -> UPath:
    """The run of the registry's champion: a small model of random weights, whose clicks enter late."""
    folder = UPath(tmp_path / "runs" / "first")
    torch.manual_seed(0)
    config = override(Config(model=LATE_MODEL), {"data.root": str(scenes), "eval.max_clicks": 3})
    tracked = open_run(registry, folder, config)
    save_checkpoint(
        Path(str(folder)) / "step_00000001",
        MST(config.model).state_dict(),
        config,
        metrics={"val_score": 0.5},
        progress={"step": 1, "is_finished": True, "run_id": tracked.run_id},
    )
    judged = [f"coco:{scenes}/annotations/instances_test.json"]
    keep = tmp_path / "kept"
    promote(registry, folder, Request(data=judged, max_objects=4, max_clicks=2, force="a test", keep=keep))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A model of random weights, scaled up so that its masks have many parts."""
    torch.manual_seed(0)
    model = MST(TINY_MODEL)
    with torch.no_grad():
        model.head.conv_seg.weight.mul_(50)
    folder = tmp_path_factory.mktemp("models") / "random"
    save_checkpoint(folder, model.state_dict(), Config(model=TINY_MODEL))
    return folder


@pytest.fixture(scope="module")
def server(cluster, checkpoint, tmp_path_factory) -> Iterator[str]:
    """A server of that model."""
    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path_factory.mktemp("images")),
        max_bytes=200_000,
        max_pixels=200_000,
        precision="fp32",
        deadline_seconds=120,  # a replica starts slowly on a busy machine
    )
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(settings))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def local(checkpoint, tmp_path_factory) -> Iterator[str]:
    """The HTTP interface with that model in one process: without Ray, it is there in a second."""
    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path_factory.mktemp("images")),
        max_bytes=400_000,
        max_pixels=200_000,
        precision="fp32",
    )
    with listening(local_api(settings)) as url:
        yield url


def local_api(settings: ServeSettings, *keys: str, seconds: float = 0.0) -> FastAPI:
    """The HTTP interface, around a model in this process, each of whose forwards takes so much longer."""
    model = ServedModel(settings)

    async def describe(address: str) -> Version:
        return model.version

    async def forward(address: str, crop: Crop) -> Answer:
        await asyncio.sleep(seconds)
        return (await asyncio.to_thread(model.answer, [crop]))[0]

    core = Core(settings, settings.model, describe, forward, Metrics("local"))
    return build_api(core, settings, Keys(keys, settings.key_rate))


@pytest.fixture(scope="module")
def http(local: str) -> Iterator[httpx.Client]:
    """Speaks to that interface."""
    with httpx.Client(base_url=local, timeout=60) as client:
        yield client


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serve an application from a thread of this process."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), f"nothing can listen on port {port}"
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def picture(seed: int = 0, height: int = 90, width: int = 140) -> RGB:
    """An image of noise."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def png(image: RGB) -> bytes:
    """An image as a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


CLICKS = [Click(20, 30, True), Click(50, 100, True), Click(70, 10, False)]
"""On a picture."""


@pytest.fixture(scope="module")
def mask(local: str) -> Mask:
    """What they mean, which every protocol must say."""
    mask = Client(local).segment(picture(), CLICKS).mask
    assert 0.02 < mask.mean() < 0.98
    return mask


def without_times(records: list[ObjectRecord]) -> list[ObjectRecord]:
    """What happened on objects, but for how long it took."""
    nothing = {"seconds_model": (), "seconds_total": (), "seconds_encoding": (), "seconds_opening": 0.0}
    return [replace(each, **nothing) for each in records]
