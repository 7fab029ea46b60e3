"""A server to measure, and annotators that click on it: shared by the benchmarks `serve*`."""

import logging
import math
import os
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import ray
import skimage.data
from ray import serve

from mst.checkpoint import CONFIG, WEIGHTS, verify
from mst.clicks import Click
from mst.client import Client, Retry
from mst.errors import ServerError
from pipelines.cluster import free_port
from pipelines.registry.versions import Promotion, register, registry_client, snapshot
from serve.app import build
from serve.memory import MALLOC
from serve.settings import ServeSettings

APPLICATION = "bench"
CHECKPOINT = Path("checkpoints/scenes_tiny")
HEIGHT, WIDTH = 480, 640


@contextmanager
def serving(settings: ServeSettings) -> Iterator[str]:
    """Run a server on a Ray of its own; yields its address."""
    os.environ.update(MALLOC | os.environ)  # as `python -m serve` does
    ray.init("local", num_cpus=8, logging_level=logging.ERROR, log_to_driver=False)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build(settings), name=APPLICATION, logging_config={"log_level": "WARNING"})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def serving_scenes(**more: Any) -> Iterator[str]:
    """Run a server of the shipped model of scenes, in fp32, with more settings; yields its address."""
    with image_folder() as images:
        settings: dict[str, Any] = {
            "model": str(CHECKPOINT.absolute()), "image_store": images, "precision": "fp32",
        }  # fmt: skip
        with serving(ServeSettings(**settings | more)) as url:
            yield url


def photo(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A photo as JPEG: objects of several sizes, a pixel further for each seed."""
    pixels = cv2.resize(skimage.data.coffee(), size, interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", np.roll(pixels, divmod(seed, WIDTH), (0, 1))[..., ::-1])[1].tobytes()


def upload(url: str, seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """Store a photo; return its id."""
    reply = httpx.post(f"{url}/v1/images", content=photo(seed, size), timeout=60).raise_for_status()
    return str(reply.json()["image_id"])


@dataclass
class Annotator(threading.Thread):
    """Clicks on one image until it is told to stop, each time a first click elsewhere.

    Args:
        url: of the server.
        image_id: of the image.
        seed: of its clicks.
        is_patient: whether it tries again, as `mst.client` does by itself, for a minute.
        pause: seconds between clicks.
    """

    url: str
    image_id: str
    seed: int
    is_patient: bool = False
    pause: float = 0.0
    seconds: list[float] = field(default_factory=list)
    """That each mask took, all tries together."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Of each try; the kind of error where there was no reply."""
    versions: list[str] = field(default_factory=list)
    failed: int = 0
    """Clicks that got no mask."""

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Click."""
        rng = np.random.default_rng([self.seed, 1])  # nobody else's clicks, which would be known already
        retry, transport = Retry(60.0 if self.is_patient else 0.0), _Counting(self.statuses)
        with Client(self.url, timeout=90, retry=retry, transport=transport) as client:
            while not self.done.is_set():
                click = Click(int(rng.integers(HEIGHT)), int(rng.integers(WIDTH)), True)
                start = time.perf_counter()
                try:
                    answer = client.mask(self.image_id, [click])
                except ServerError:
                    self.failed += 1
                    self.done.wait(1)
                else:
                    self.seconds.append(time.perf_counter() - start)
                    self.versions.append(answer.model.rpartition("/")[2])
                self.done.wait(self.pause)


class _Counting(httpx.HTTPTransport):
    """Counts how each try of a call ends."""

    def __init__(self, statuses: Counter[str]) -> None:
        super().__init__()
        self._statuses = statuses

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            reply = super().handle_request(request)
        except httpx.HTTPError as error:
            self._statuses[type(error).__name__] += 1
            raise
        self._statuses[str(reply.status_code)] += 1
        return reply


def annotate(annotators: list[Annotator], meanwhile: Callable[[], object]) -> None:
    """Let them click while something is done, and to the end those that are under way then."""
    for each in annotators:
        each.start()
    meanwhile()
    for each in annotators:
        each.done.set()
    for each in annotators:
        each.join()


def wait_for(holds: Callable[[], bool], seconds: float) -> float:
    """Wait until something holds; return the seconds, or infinity where it never did."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        with suppress(httpx.HTTPError):
            if holds():
                return time.monotonic() - start
        time.sleep(0.1)
    return math.inf


def make_champion(uri: str, folder: Path) -> str:
    """Make a checkpoint the champion of a registry; return its version."""
    client, digests = registry_client(uri), verify(folder)["sha256"]
    outcome = register(
        client,
        snapshot(client),
        Promotion("forced", "it is to be served"),
        source=str(folder),
        run_id=None,
        tags={"sha256": digests[WEIGHTS], "config_sha256": digests[CONFIG]},
        description="",
    )
    return outcome.version


def total(annotators: list[Annotator]) -> Counter[str]:
    """The statuses of all tries."""
    return sum((each.statuses for each in annotators), Counter())


def resident_mb() -> float:
    """Memory of the server's processes on this machine, in MiB; pages that they share count for each."""
    return sum(resident_by_process().values())


def resident_by_process() -> dict[str, float]:
    """The same for each process, by its number and what Ray calls it."""
    found = {}
    for process in _processes():
        with suppress(OSError):  # it has ended meanwhile
            pages = int((process / "statm").read_text().split()[1])
            name = (process / "cmdline").read_text().strip("\0 ").removeprefix("ray::").partition(".")[0]
            found[f"{process.name} {name}"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


def open_files() -> int:
    """File descriptors of the server's processes on this machine."""
    count = 0
    for process in _processes():
        with suppress(OSError):
            count += len(list((process / "fd").iterdir()))
    return count


def _processes() -> list[Path]:
    """The folders in /proc of our Ray's workers."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[folder.name] = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            if (folder / "cmdline").read_bytes().startswith(b"ray::"):
                workers.append(folder)

    def is_ours(process: str) -> bool:
        while process in parents and process != str(os.getpid()):
            process = parents[process]
        return process == str(os.getpid())

    return [each for each in workers if is_ours(each.name)]


def metric(url: str, name: str) -> float:
    """The sum of a metric's series."""
    return math.fsum(series(url, name).values())


def series(url: str, name: str) -> dict[str, float]:
    """A metric's values in the HTTP replica that answers, by name and labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if line.split("{")[0] == name]
    return {labels: float(value) for labels, value in pairs}


def median_ms(seconds: list[float]) -> float:
    """In milliseconds."""
    return 1000 * statistics.median(seconds)


@contextmanager
def image_folder() -> Iterator[str]:
    """A folder for the server's images."""
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "images")
