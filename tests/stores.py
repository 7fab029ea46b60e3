"""S3 on this machine, with the scenes in it, and a door to it that can be shut: fixtures of all tests."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from upath import UPath

from mst.data import files
from pipelines.cluster import free_port

Away = Callable[[str, float], None]
"""Takes a store away for some seconds: "killed", or "stalled"."""


class Server:
    """A process of its own that serves at `url`, and can be taken away and brought back at the same place."""

    def __init__(
        self, *command: str | int, port: int, python: str | Path = sys.executable, **options: Any
    ) -> None:
        self._command, self._options = [str(python), *map(str, command)], options
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        """Start, and return once it accepts connections."""
        # In a group of its own, since MLflow's server has processes of its own.
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.DEVNULL, start_new_session=True, **self._options
        )
        for _ in range(1800):  # MLflow takes a minute where the machine is busy
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                time.sleep(0.1)
            else:
                return
        self.kill()
        raise RuntimeError(f"{self._command} does not answer")

    def kill(self) -> None:
        """Cut all connections and refuse new ones."""
        with suppress(ProcessLookupError):  # it was killed before
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Accept connections and say nothing."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)


class S3(Server):
    """S3 on this machine."""

    def __init__(self) -> None:
        port = free_port()
        super().__init__("-m", "moto.server", "-H", "127.0.0.1", "-p", port, port=port)

    def upload(self, folder: Path) -> UPath:
        """Copy a folder to a bucket of its own; return where it lies."""
        client = boto3.client("s3")
        bucket = f"bucket-{len(client.list_buckets()['Buckets'])}"
        client.create_bucket(Bucket=bucket)
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), bucket, f"data/{path.relative_to(folder)}")
        return UPath(f"s3://{bucket}/data")


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A server of S3, which is the one that AWS's settings name from then on."""
    server = S3()
    settings = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield server
    server.kill()


@pytest.fixture(scope="session")
def door(s3: S3) -> Iterator[Server]:
    """Forwards to S3, so that it can be shut and keep what it holds."""
    port = free_port()
    door = Server(Path(__file__).with_name("door.py"), port, s3.port, port=port)
    yield door
    door.kill()


@pytest.fixture(scope="session")
def uploaded(s3: S3, scenes: Path) -> UPath:
    """The scenes in S3."""
    return s3.upload(scenes)


@pytest.fixture
def remote(uploaded: UPath, door: Server) -> Iterator[UPath]:
    """The scenes behind the door, which is open again after each test."""
    yield UPath(uploaded, endpoint_url=door.url)
    door.kill()
    door.start()


@pytest.fixture
def away(remote: UPath, door: Server) -> Iterator[Away]:
    """Takes the store away; it comes back by itself, before the test is over at the latest."""
    outages, over = [], threading.Event()

    def run(kind: str, seconds: float, gone: threading.Event) -> None:
        if kind == "stalled":
            with door.stalled():
                gone.set()
                over.wait(seconds)
        else:
            door.kill()
            gone.set()
            over.wait(seconds)
            door.start()

    def start(kind: str, seconds: float) -> None:
        gone = threading.Event()
        outages.append(threading.Thread(target=run, args=(kind, seconds, gone)))
        outages[-1].start()
        gone.wait()

    yield start
    over.set()
    for each in outages:
        each.join()


def impatient(monkeypatch: pytest.MonkeyPatch, silence: float = 0.5) -> None:
    """Take a store that says nothing for so long for a failing one."""
    monkeypatch.setitem(files._CLIENTS["s3"]["config_kwargs"], "read_timeout", silence)
