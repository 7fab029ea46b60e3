"""What is said where the tracking server cannot be used."""

import subprocess
import sys
import time

import pytest

from mst.errors import ServerError
from pipelines.cluster import free_port
from pipelines.storage import PROJECT
from pipelines.tracking import check_server, tracking_uri
from tests.conftest import Server


def test_a_server_that_is_not_there_is_said_at_once():
    port, start = free_port(), time.monotonic()
    with pytest.raises(ServerError, match=rf"no MLflow server answers at http://127.0.0.1:{port} "):
        check_server(f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 5


def test_a_password_in_the_address_is_not_shown():
    with pytest.raises(ServerError) as error:
        check_server(f"http://me:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(error.value)


def test_another_server_is_no_mlflow(monkeypatch, tmp_path):
    port = free_port()
    server = Server("-m", "http.server", port, "--bind", "127.0.0.1", port=port, cwd=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    try:
        with pytest.raises(ServerError, match=r"no MLflow server answers .*404"):
            tracking_uri()
    finally:
        server.kill()


def test_a_command_says_so_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    command = [sys.executable, "pipelines/promote.py", "--log"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no MLflow server answers at http://127.0.0.1")
    assert len(done.stderr.strip().splitlines()) == 1
