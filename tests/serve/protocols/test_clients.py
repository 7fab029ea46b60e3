"""The tools themselves, each in an environment of its own: `make test-clients` (some minutes, 3 GB)."""

import base64
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from mst.clicks import Click
from mst.client import Client
from mst.export_x_anylabeling import export_x_anylabeling
from pipelines.cluster import free_port
from pipelines.storage import PROJECT
from serve.settings import ServeSettings
from tests.conftest import CLICKS, listening, local_api, picture, png
from tests.mst.test_export_x_anylabeling import THRESHOLD, in_frame, late_model, logits_in_frame
from tests.protocol_calls import HEIGHT, WIDTH, filled, iou, without_holes

pytestmark = pytest.mark.clients

HERE = PROJECT / "tests" / "clients"
ENVIRONMENTS = PROJECT / ".venv-clients"
POINTS = [f"{click.col},{click.row},{int(click.is_positive)}" for click in CLICKS]


def run(environment: str, script: str, *arguments: object) -> None:
    """Run a script of tests/clients with a tool's own Python."""
    python = ENVIRONMENTS / environment / "bin" / "python"
    assert python.exists(), f"{python} is missing: make test-clients sets it up"
    command = [python, HERE / f"{script}.py", *arguments]
    done = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(png(picture()))
    return path


def test_cvat_stores_the_mask(local, image, mask, tmp_path):
    run("sdks", "cvat_click", local, image, tmp_path / "out.npy", *POINTS)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), mask)


def test_tritons_client_gets_the_mask_in_json_and_in_binary(local, image, mask, tmp_path, checkpoint):
    run("sdks", "triton_click", local, image, tmp_path / "out.npy", checkpoint.parent.name, *POINTS)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), mask)


def test_x_anylabeling_gets_the_polygons(local, image, mask, tmp_path):
    run("x_anylabeling", "x_anylabeling_click", local, image, tmp_path / "out.json", *POINTS)
    shapes = json.loads((tmp_path / "out.json").read_text())
    assert shapes
    union = np.any([filled([shape]) for shape in shapes], axis=0)
    assert iou(union, without_holes(mask)) > 0.95


def test_x_anylabeling_runs_the_model_itself(image, tmp_path):
    model = late_model()
    file = export_x_anylabeling(model, tmp_path / "tool", "mst", THRESHOLD)
    run("x_anylabeling", "x_anylabeling_model", file, image, tmp_path / "out.npz", *POINTS)
    frame, scale = in_frame(picture())
    for number, mask in enumerate(np.load(tmp_path / "out.npz").values(), 1):
        clicks = [
            Click(each.row * scale - 0.5, each.col * scale - 0.5, each.is_positive)
            for each in CLICKS[:number]
        ]
        back = np.array([[1 / scale, 0, 0], [0, 1 / scale, 0]])
        expected = cv2.warpAffine(logits_in_frame(model, frame, clicks), back, (WIDTH, HEIGHT)) > 0
        assert 0.02 < expected.mean() < 0.98
        assert iou(mask, expected) > 0.99


CONFIG = """<View><Image name="image" value="$image" zoom="true"/>
<BrushLabels name="brush" toName="image" smart="false"><Label value="Object"/></BrushLabels>
<KeyPointLabels name="kp" toName="image" smart="true" smartOnly="true"><Label value="Object"/>
</KeyPointLabels>
<RectangleLabels name="box" toName="image" smart="true" smartOnly="true"><Label value="Object"/>
</RectangleLabels>
</View>"""
TOKEN = secrets.token_hex(20)


@pytest.fixture(scope="module")
def studio(tmp_path_factory) -> Iterator[httpx.Client]:
    """Label Studio, with one user; its usage statistics and look-ups of versions are off."""
    folder, port = tmp_path_factory.mktemp("studio"), free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_DJANGO_DB": "sqlite",
        "LABEL_STUDIO_USERNAME": "test@example.com",
        "LABEL_STUDIO_PASSWORD": secrets.token_hex(8),
        "LABEL_STUDIO_USER_TOKEN": TOKEN,
        "LABEL_STUDIO_HOST": url,
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false",  # a backend on this machine
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",
    }
    program = ENVIRONMENTS / "label_studio" / "bin" / "label-studio"
    assert program.exists(), f"{program} is missing: make test-clients sets it up"
    options = ["-b", "--internal-host", "127.0.0.1", "-p", str(port), "--enable-legacy-api-token"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, "start", *options],
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    with httpx.Client(base_url=url, headers={"Authorization": f"Token {TOKEN}"}, timeout=60) as client:
        try:
            wait_for(client, process, folder / "log")
            yield client
        finally:
            process.terminate()
            process.wait()


def wait_for(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def backend(studio, checkpoint, tmp_path_factory) -> Iterator[str]:
    """A server that may fetch images from Label Studio."""
    settings = ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path_factory.mktemp("images")),
        precision="fp32",
        label_studio_url=str(studio.base_url),
        label_studio_token=TOKEN,
    )
    with listening(local_api(settings)) as url:
        yield url


@pytest.fixture(scope="module")
def task(studio, backend, tmp_path_factory) -> dict[str, Any]:
    """A task with an image, in a project that the backend is connected to."""
    project = done(studio.post("/api/projects/", json={"title": "clicks", "label_config": CONFIG}))["id"]
    files = {"file": ("image.png", png(picture()), "image/png")}
    done(studio.post(f"/api/projects/{project}/import", files=files))
    connected = {"url": backend, "project": project, "is_interactive": True, "title": "MST"}
    ml = done(studio.post("/api/ml", json=connected))
    assert ml["state"] == "CO", ml  # connected
    (task,) = done(studio.get("/api/tasks", params={"project": project, "fields": "all"}))["tasks"]
    return {"id": task["id"], "ml": ml["id"], "project": project}


def done(reply: httpx.Response) -> Any:
    assert reply.is_success, reply.text
    return reply.json()


def region(kind: str, name: str, *, is_positive: bool = True, **value: float) -> dict[str, Any]:
    return {
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "is_positive": is_positive,
        "id": secrets.token_hex(5),
        "from_name": name,
        "to_name": "image",
        "type": kind,
        "origin": "manual",
        "value": {**value, "labels": ["Object"], kind: ["Object"]},
    }


def keypoint(click: Click) -> dict[str, Any]:
    x, y = 100 * (click.col + 0.5) / WIDTH, 100 * (click.row + 0.5) / HEIGHT
    return region("keypointlabels", "kp", is_positive=click.is_positive, x=x, y=y, width=0.3)


def asked(studio: httpx.Client, task: dict[str, Any], *regions: dict[str, Any]) -> dict[str, Any]:
    """What Label Studio's interface gets for marks: the backend's first prediction."""
    body = {"task": task["id"], "context": {"result": list(regions)}}
    reply = done(studio.post(f"/api/ml/{task['ml']}/interactive-annotating", json=body))
    assert not reply.get("errors"), reply
    return reply["data"]


def decoded(result: dict[str, Any], tmp_path: Path) -> np.ndarray:
    """A brush region as Label Studio's own SDK reads it."""
    (tmp_path / "result.json").write_text(json.dumps(result))
    run("sdks", "brush_decode", tmp_path / "result.json", tmp_path / "mask.npy")
    return np.load(tmp_path / "mask.npy")


def test_label_studio_clicks_and_keeps_the_mask(studio, backend, task, tmp_path):
    client = Client(backend)
    start = time.perf_counter()
    for number in range(1, len(CLICKS) + 1):
        data = asked(studio, task, *map(keypoint, CLICKS[:number]))
        (result,) = data["result"]
        expected = client.segment(picture(), CLICKS[:number]).mask
        np.testing.assert_array_equal(decoded(result, tmp_path), expected)
    assert time.perf_counter() - start < 60
    assert data["model_version"]
    kept = done(studio.post(f"/api/tasks/{task['id']}/annotations/", json={"result": [result]}))
    np.testing.assert_array_equal(decoded(kept["result"][0], tmp_path), expected)


def test_label_studios_rectangle_is_a_box(studio, backend, task, tmp_path):
    box = region("rectanglelabels", "box", x=25.0, y=20.0, width=50.0, height=60.0)
    (result,) = asked(studio, task, box)["result"]
    image_id = Client(backend).upload(png(picture()))
    reply = httpx.post(
        f"{backend}/v1/images/{image_id}/mask", json={"box": [35, 18, 105, 72], "format": "png"}
    )
    data = np.frombuffer(base64.b64decode(reply.json()["mask"]), np.uint8)
    expected = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) == 255
    np.testing.assert_array_equal(decoded(result, tmp_path), expected)


def test_label_studio_predicts_in_batches_without_marks(studio, task):
    action = {"id": "retrieve_tasks_predictions", "project": task["project"]}
    chosen = {**action, "selectedItems": {"all": True, "excluded": []}}
    answer = done(studio.post("/api/dm/actions", params=action, json=chosen))
    assert answer["processed_items"] == 1, answer
