import threading
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import Server, free_port
from upath import UPath

COCO = ["coco:annotations/instances_train.json"]
SAMPLES = 48


@pytest.fixture(scope="module")
def uploaded(s3, scenes) -> UPath:
    return s3.upload(scenes)


@pytest.fixture(scope="module")
def gate(s3):
    """A door to S3 that can be shut."""
    port = free_port()
    gate = Server(Path(__file__).with_name("gate.py"), port, s3.port, port=port)
    yield gate
    gate.kill()


@pytest.fixture
def gated(uploaded, gate):
    """The data set behind the gate, which is open again after each test."""
    yield UPath(uploaded, endpoint_url=gate.url)
    gate.kill()
    gate.start()


@pytest.fixture
def web(scenes):
    """A server of the scenes' folder that lists folders."""
    with serving(partial(SimpleHTTPRequestHandler, directory=str(scenes))) as url:
        yield url


def serving(handler) -> ExitStack:
    stack = ExitStack()
    server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    stack.__enter__ = lambda: None
    return stack


def images(root: UPath) -> list[UPath]:
    return [root / "train" / f"{number:012d}.jpg" for number in range(12)]
