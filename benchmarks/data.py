"""What training data and simulated clicks cost: samples, the index, the next click, images in a store.

    make bench-data                                      # all of it: some minutes on one core
    .venv/bin/python -m benchmarks.data --only clicks    # a part of it
    .venv/bin/python -m benchmarks.data --data-root D    # by default ../shared/data/coco

Samples are of a COCO folder's photos or, where there is none, of synthetic scenes. They and clicks are
counted in CPU time of one thread, so that a busy machine moves the figures less. What is generated stays in
`out/bench/`.
"""

import argparse
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from upath import UPath

from benchmarks.shared.harness import OUT, Row, report, row
from benchmarks.shared.index_cost import beside_other_readers, blob, index_of_coco_size
from benchmarks.shared.plain_loader import PlainLoader, PlainRecord, plain_next_click
from mst.clicks import Click, Mask
from mst.config import Config
from mst.data.annotations import ImageRecord
from mst.data.cache import FileCache
from mst.data.index import Index, relative_to, to_batch, write_index
from mst.data.pixels.encode import annotate
from mst.data.sampling.sampler import SampleKey
from mst.data.sampling.training_set import TrainingSet
from mst.data.scenes import draw_scene, shipped_photos
from mst.data.sources import read_records
from mst.overrides import override
from mst.robot import next_click
from pipelines.cluster import free_port

ANNOTATIONS = "annotations/instances_train2017.json"
HEIGHT, WIDTH = 480, 640
SCENES = 60
ROUNDS = 12
SAMPLES = 50  # in a round
SESSIONS = 20
CLICKS = 20
FRAME = (480, 854)  # pixels of DAVIS
CASES = 1_000

Call = Callable[[int], object]
"""What is timed, by the number of the round."""


def cpu_seconds_side_by_side(subjects: Mapping[str, Call], rounds: int) -> dict[str, float]:
    """Median CPU time of each, called in turn after one call that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        for name, call in subjects.items():
            start = time.process_time()
            call(number)
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


# Samples


def photo_index(root: Path | None) -> tuple[Index, UPath]:
    """An index of images of 640 x 480 with objects, and their folder: COCO's, or one of drawn scenes."""
    images = UPath(root.resolve()) if root else UPath(OUT / "scenes")
    if root:
        joined = read_records([f"coco:{ANNOTATIONS}"], images)
        records = [each for each in joined if {each.height, each.width} == {HEIGHT, WIDTH} and each.objects]
    else:
        Path(str(images)).mkdir(parents=True, exist_ok=True)
        records = [scene(images / f"{number}.jpg", number) for number in range(SCENES)]
    objects = sum(len(each.objects) for each in records) / len(records)
    print(f"{len(records)} images of {images}, {objects:.1f} objects each")
    return Index(indexed(OUT / "index_photos", records, images), images), images


def scene(path: UPath, number: int) -> ImageRecord:
    """Draw a scene of 640 x 480 and write its picture."""
    drawn = draw_scene(HEIGHT, WIDTH, np.random.default_rng(number), shipped_photos())
    cv2.imwrite(str(path), cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    objects = tuple(annotate(each.mask, f"{path}:{i}") for i, each in enumerate(drawn.objects))
    return ImageRecord(path, HEIGHT, WIDTH, objects)


def indexed(folder: Path, records: list[ImageRecord], images: UPath) -> UPath:
    """Write an index anew."""
    shutil.rmtree(folder, ignore_errors=True)
    write_index(folder, [to_batch(records, images)], {})
    return UPath(folder)


def drawing(samples: TrainingSet | PlainLoader, images: int) -> Call:
    """Draw a round's samples."""

    def draw(number: int) -> None:
        for position in range(SAMPLES):
            samples[SampleKey(number, position, (number * SAMPLES + position) % images)]

    return draw


def training_samples(root: Path | None) -> Iterator[Row]:
    """Samples of one thread, beside a loader that augments all masks of an image, and a thriftier one.

    The thriftier one augments layers of objects that do not overlap, of which an image of COCO has two.
    """
    index, _ = photo_index(root)
    plain, config = [PlainRecord(each) for each in index], Config()
    subjects: dict[str, TrainingSet | PlainLoader] = {
        "ours": TrainingSet(index, config),
        "plain": PlainLoader(plain, config),
        "of layers": PlainLoader(plain, config, of_layers=True),
    }
    calls = {name: drawing(each, len(index)) for name, each in subjects.items()}
    seconds = cpu_seconds_side_by_side(calls, ROUNDS)
    yield row("samples_per_second_per_core", SAMPLES / seconds["ours"], "1/s", at_least=100)
    yield row("plain_loader_samples_per_second_per_core", SAMPLES / seconds["plain"], "1/s")
    yield row("samples_over_plain_loader", seconds["plain"] / seconds["ours"], at_least=3)
    yield row("samples_over_plain_loader_of_layers", seconds["of layers"] / seconds["ours"])


VARIED: dict[str, dict[str, Any]] = {
    "copy_paste": {"data.copy_paste": 1},
    "hue_and_saturation": {"data.hue": 20, "data.saturation": 0.4},
    "blur": {"data.blur": 1},
    "jpeg": {"data.jpeg": 1},
    "resize_0.3_to_2": {"data.resize": (0.3, 2.0)},
}
"""Settings that are off in the paper's recipe, each as often as can be."""


def cost_of_variety(root: Path | None) -> Iterator[Row]:
    """What each kind of augmentation adds to a sample that has it."""
    (index, _), plain = photo_index(root), Config()
    configs = {"plain": plain, **{name: override(plain, each) for name, each in VARIED.items()}}
    calls = {name: drawing(TrainingSet(index, each), len(index)) for name, each in configs.items()}
    seconds = cpu_seconds_side_by_side(calls, ROUNDS)
    for name in VARIED:
        yield row(f"{name}_cost", 1000 * (seconds[name] - seconds["plain"]) / SAMPLES, "ms")


# Clicks


def predictions(rng: np.random.Generator) -> tuple[Mask, list[Mask]]:
    """An object of 2 to 40 % of a frame, and a prediction before each click: nothing, then ever better."""
    radius = math.sqrt(math.exp(rng.uniform(*np.log((0.02, 0.4)))) * math.prod(FRAME) / math.pi)
    truth = blob(*FRAME, radius, rng)
    inside, outside = (
        cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) for mask in (truth, ~truth)
    )
    drawn = [truth & False]
    for strength in radius * np.geomspace(0.3, 0.02, CLICKS - 1):
        waves = smooth_noise(*FRAME, rng.uniform(6, 30), rng)
        drawn.append(inside - outside + strength * waves / waves.std() > 0)
    return truth, drawn


def smooth_noise(height: int, width: int, sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Blurred noise around 0, (H, W)."""
    noise = rng.standard_normal((height, width), np.float32)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma), np.float32)


def click_speed() -> Iterator[Row]:
    """The next click beside two exact distance transforms of the whole frame, as predictions get better."""
    rng, seconds = np.random.default_rng(0), defaultdict(list)
    for _ in range(SESSIONS):
        truth, drawn = predictions(rng)
        clicked: list[Click] = []
        for number, prediction in enumerate(drawn):
            for name, place in (("ours", next_click), ("plain", plain_next_click)):
                start = time.process_time()
                click = place(prediction, truth, None, clicked)
                seconds[name, number > 0].append(time.process_time() - start)
            clicked += [click] if click else []
    ours, plain = (seconds[name, False] + seconds[name, True] for name in ("ours", "plain"))
    yield row("next_click", 1000 * statistics.median(ours), "ms")
    yield row("next_click_speedup", statistics.median(plain) / statistics.median(ours), at_least=3)
    yield row("next_click_speedup_of_mean", sum(plain) / sum(ours))
    yield row("first_click_speedup", sum(seconds["plain", False]) / sum(seconds["ours", False]))


def click_equality() -> Iterator[Row]:
    """How many random cases give the very click of the plain way."""
    rng = np.random.default_rng(1)
    cases = (random_case(rng) for _ in range(CASES))
    equal = sum(next_click(*case) == plain_next_click(*case) for case in cases)
    yield row("next_click_equal", equal, f"of {CASES}", at_least=CASES)


def random_case(rng: np.random.Generator) -> tuple[Mask, Mask, Mask | None, list[Click]]:
    """Prediction, truth, void pixels and clicked ones, among them the deepest; from one pixel to a frame."""
    height, width = FRAME if rng.random() < 0.1 else rng.integers(1, 161, 2).tolist()
    sigma = rng.uniform(0.5, 25)
    prediction, truth, void = (
        smooth_noise(height, width, sigma, rng) > level for level in (0, 0, 0.03 * rng.random())
    )
    ignored = void if rng.random() < 0.5 else None
    clicked = [
        Click(int(rng.integers(height)), int(rng.integers(width)), True) for _ in range(rng.integers(5))
    ]
    for _ in range(rng.integers(4)):
        click = plain_next_click(prediction, truth, ignored, clicked)
        clicked += [click] if click else []
    return prediction, truth, ignored, clicked


# A store


@contextmanager
def bucket() -> Iterator[UPath]:
    """A bucket of a local S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="bench",
        AWS_SECRET_ACCESS_KEY="bench",
        AWS_DEFAULT_REGION="us-east-1",
    )
    try:
        _wait_for(port)
        made = UPath("s3://bench")
        made.mkdir()
        yield made
    finally:
        server.terminate()
        server.wait()


def _wait_for(port: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def samples_from_store(root: Path | None) -> Iterator[Row]:
    """Samples of images in S3, once the cache has them, beside samples of images in a folder."""
    (local, images), config = photo_index(root), Config()
    with bucket() as store, tempfile.TemporaryDirectory() as folder:
        for each in local:
            copy = store / relative_to(each.path, images)
            copy.write_bytes(each.path.read_bytes())
        remote, cache = Index(local.folder, store), FileCache(Path(folder), 10**10)
        for record in remote:
            record.read(cache)
        subjects = {
            "local": drawing(TrainingSet(local, config), len(local)),
            "s3": drawing(TrainingSet(remote, config, cache), len(local)),
        }
        seconds = cpu_seconds_side_by_side(subjects, ROUNDS)
    yield row("s3_warm_over_local", seconds["local"] / seconds["s3"], at_least=0.9)


def main() -> None:
    """Run the benchmark."""
    photos = Path("../shared/data/coco")
    parser = argparse.ArgumentParser(description="What training data and simulated clicks cost.")
    parser.add_argument("--only", choices=("samples", "index", "clicks", "store"), help="one part of it")
    parser.add_argument("--data-root", type=Path, default=photos if photos.is_dir() else None)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    root = arguments.data_root
    suites: dict[str, tuple[Callable[[], Iterator[Row]], ...]] = {
        "samples": (partial(training_samples, root), partial(cost_of_variety, root)),
        "index": (index_of_coco_size, beside_other_readers),
        "clicks": (click_speed, click_equality),
        "store": (partial(samples_from_store, root),),
    }
    chosen = suites[arguments.only] if arguments.only else sum(suites.values(), ())
    report("data", (each for suite in chosen for each in suite()))


if __name__ == "__main__":
    main()
