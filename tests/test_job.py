"""`ray job submit` to a cluster that `ray start` made: `make test-cluster`."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from mst.config import override
from pipelines.storage import PROJECT, newest_checkpoint
from tests.conftest import as_options, free_port

pytestmark = pytest.mark.cluster

PROGRAMS = Path(sys.executable).parent


@pytest.fixture
def environment() -> dict[str, str]:
    """Of the cluster and of who uses it: the python of its jobs, and a token without which it runs none."""
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture
def head(environment) -> Iterator[str]:
    """The address of a cluster's job server."""
    dashboard, agent = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    # Not `ray stop` in the end: it would stop every Ray on the machine.
    folder = tempfile.mkdtemp(prefix="ray")  # its path must be short: Ray has sockets in it
    process = subprocess.Popen(
        [
            *(PROGRAMS / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            f"--dashboard-agent-listen-port={agent}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(120):
        assert process.poll() is None
        try:
            if httpx.get(f"{address}/api/version").status_code < 500:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def submit(
    address: str, environment: dict[str, str], registry: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Submit a training and wait for its end."""
    return subprocess.run(
        [
            *(PROGRAMS / "ray", "job", "submit", "--address", address, "--working-dir", "."),
            *("--runtime-env-json", f'{{"env_vars": {{"MLFLOW_TRACKING_URI": "{registry}"}}}}'),
            *("--", "python", "pipelines/train.py", "--recipe", "demo", "--num-workers", "2", *arguments),
        ],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_trains_and_refuses_paths_that_go_with_it(head, environment, registry, config, tmp_path):
    config = override(config, {"train.epochs": 1})
    arguments = ["--name", "job", "--storage", str(tmp_path), *as_options(config)]
    done = submit(head, environment, registry, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert newest_checkpoint(tmp_path / "job") == tmp_path / "job" / "epoch_00001"
    assert "best checkpoint" in done.stdout

    refused = submit(head, environment, registry, *arguments, "--storage", "runs")
    assert refused.returncode != 0
    assert "the path 'runs' is relative, but a Ray job runs in a copy of the project" in refused.stdout
