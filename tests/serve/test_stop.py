"""A server that is told to stop answers what is in hand first."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from pipelines.cluster import free_port
from pipelines.storage import PROJECT
from tests.conftest import picture, png

CLICKS = [{"x": 7 * number % 140, "y": 3 + number} for number in range(30)]


def test_what_is_in_hand_is_answered_before_the_server_stops(tmp_path):
    port = free_port()
    model = PROJECT / "checkpoints" / "scenes_tiny"
    options = ["--model", str(model), "--port", str(port), "--image-store", str(tmp_path / "images")]
    command = [sys.executable, "-m", "serve", *options]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as client,
        ThreadPoolExecutor() as pool,
    ):
        assert "serving" in server.stdout.readline()
        image_id = client.post("/v1/images", content=png(picture())).json()["image_id"]
        in_hand = pool.submit(client.post, f"/v1/images/{image_id}/mask", json={"clicks": CLICKS})
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        assert "answering what is in hand" in server.stdout.readline()
        until = time.monotonic() + 20
        while not in_hand.done() and time.monotonic() < until:
            reply = client.get("/readyz")
            if reply.status_code == 503:
                assert reply.json()["detail"] == "the server is about to stop"
                break
        assert in_hand.result().status_code == 200
        assert server.wait(60) == 0
