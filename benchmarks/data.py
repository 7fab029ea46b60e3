"""What training data and simulated clicks cost: samples, the index, the next click, images in a store.

    make bench-data                                      # all of it: some minutes on one core
    .venv/bin/python -m benchmarks.data --only clicks    # a part of it
    .venv/bin/python -m benchmarks.data --data-root D    # by default ../shared/data/coco

Samples are of a COCO folder's photos or, where there is none, of synthetic scenes. They and clicks are
counted in CPU time of one thread, so that a busy machine moves the figures less. What is generated stays in
`out/bench/`.
"""

import argparse
import importlib
import importlib.util
import json
import math
import multiprocessing
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
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from upath import UPath

from benchmarks.harness import OUT, Row, report, row
from benchmarks.plain_loader import PlainLoader, PlainRecord, plain_next_click
from mst.clicks import Click, Mask, next_click
from mst.config import Config
from mst.data.annotations import ImageRecord
from mst.data.encode import annotate
from mst.data.files import FileCache
from mst.data.index import Index, relative_to, to_batch, write_index
from mst.data.sampler import SampleKey
from mst.data.scenes import SHAPES, draw_scene, shipped_photos
from mst.data.sources import read_records
from mst.data.training_set import TrainingSet

ANNOTATIONS = "annotations/instances_train2017.json"
HEIGHT, WIDTH = 480, 640
SCENES = 60
ROUNDS = 12
SAMPLES = 50  # in a round
IMAGES = 100_000  # of the large index, about all of COCO
IMAGES_OF_APIS = 10_000  # of the one beside which other readers are held; they would take gigabytes
OBJECTS = 15  # of each image
RECORDS = 2_000  # read at random after an index was opened
WORKERS = 4
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
    """Samples of one thread, beside loaders that augment all masks of an image: as layers, or one by one."""
    index, _ = photo_index(root)
    plain, config = [PlainRecord(each) for each in index], Config()
    subjects: dict[str, TrainingSet | PlainLoader] = {
        "ours": TrainingSet(index, config),
        "plain": PlainLoader(plain, config),
        "of objects": PlainLoader(plain, config, of_objects=True),
    }
    calls = {name: drawing(each, len(index)) for name, each in subjects.items()}
    seconds = cpu_seconds_side_by_side(calls, ROUNDS)
    yield row("samples_per_second_per_core", SAMPLES / seconds["ours"], "1/s", at_least=100)
    yield row("plain_loader_samples_per_second_per_core", SAMPLES / seconds["plain"], "1/s")
    yield row("samples_over_plain_loader", seconds["plain"] / seconds["ours"], at_least=3)
    yield row("samples_over_plain_loader_of_object_maps", seconds["of objects"] / seconds["ours"])


# The index


def large_index(images: int) -> Path:
    """An index of some hundred different images, repeated; made where it is missing."""
    folder = OUT / f"index_{images // 1000}k"
    if not folder.exists():
        print(f"writing {folder}: {images} images of {OBJECTS} objects")
        rng, root = np.random.default_rng(0), UPath(folder)
        rows = to_batch((blobs(root / "0.jpg", rng) for _ in range(250)), root)
        write_index(folder, repeated(rows, images), {})
    return folder


def blobs(path: UPath, rng: np.random.Generator) -> ImageRecord:
    """An image of blobs, about a hundred columns wide: a run a column."""
    masks = (blob(HEIGHT, WIDTH, rng.uniform(20, 80), rng) for _ in range(OBJECTS))
    return ImageRecord(
        path, HEIGHT, WIDTH, tuple(annotate(mask, f"coco.json:{i}") for i, mask in enumerate(masks))
    )


def blob(height: int, width: int, radius: float, rng: np.random.Generator) -> Mask:
    """A smooth object somewhere in the image."""
    mask = np.zeros((height, width), np.uint8)
    outline = SHAPES["blob"](radius, rng) + rng.uniform(
        (height / 4, width / 4), (height * 3 / 4, width * 3 / 4)
    )
    cv2.fillPoly(mask, [np.asarray(outline[:, ::-1].round(), np.int32)], 1)
    return mask.astype(bool)


def repeated(rows: pa.RecordBatch, images: int) -> Iterator[pa.RecordBatch]:
    """Rows again and again, each time with other names."""
    for start in range(0, images, rows.num_rows):
        names = pa.array([f"train2017/{start + i:012d}.jpg" for i in range(rows.num_rows)])
        yield rows.set_column(0, rows.schema.field("path"), names).slice(0, images - start)


def as_coco(folder: Path) -> Path:
    """The same images and masks as COCO's JSON; made where it is missing."""
    file = folder.with_suffix(".json")
    if not file.exists():
        numbers, images, annotations = count(1), [], []
        for image_id, record in enumerate(Index(UPath(folder), UPath(folder))):
            size = {"height": record.height, "width": record.width}
            images.append({"id": image_id, "file_name": record.path.name, **size})
            for each in record.objects:
                top, left, bottom, right = each.box
                rle = each.rle()
                annotations.append(
                    {
                        "id": next(numbers),
                        "image_id": image_id,
                        "category_id": 1,
                        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode()},
                        "area": each.area,
                        "bbox": [left, top, right - left, bottom - top],
                        "iscrowd": 0,
                    }
                )
        tables = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "blob"}]}
        file.write_text(json.dumps(tables))
    return file


class Cost(NamedTuple):
    """What a process paid for a reader of annotations; memory in MB."""

    opening: float
    """Seconds until it had the first image's objects."""
    record: float
    """CPU seconds of an image's objects, read at random."""
    private: float
    """More memory of its own, when many were read: what each further process costs."""
    mapped: float
    """More pages of files: the page cache's, which the processes of a machine share."""

    @property
    def resident(self) -> float:
        """All of its memory."""
        return self.private + self.mapped


def open_index(folder: Path) -> Call:
    """As training opens it."""
    return Index(UPath(folder), UPath(folder)).__getitem__


def open_pycocotools(file: Path) -> Call:
    """COCO's own reader."""
    coco = importlib.import_module("pycocotools.coco").COCO(file)
    return lambda image: coco.loadAnns(coco.getAnnIds(image))


def open_lvis_api(file: Path) -> Call:
    """LVIS's own reader."""
    lvis = importlib.import_module("lvis").LVIS(file)
    return lambda image: lvis.load_anns(lvis.get_ann_ids([image]))


READERS: dict[str, tuple[str, Callable[[Path], Call]]] = {
    "index": ("mst.data.index", open_index),
    "pycocotools": ("pycocotools.coco", open_pycocotools),
    "lvis_api": ("lvis", open_lvis_api),
}
"""The module that each needs, and how it opens a file."""


def cost(reader: str, path: Path, images: int, *, workers: int = 1, runs: int = 1) -> Cost:
    """What a reader costs each of some fresh processes at once; the median over all runs."""
    context, found = multiprocessing.get_context("spawn"), []
    for _ in range(runs):
        with context.Manager() as manager, context.Pool(workers) as pool:
            barrier = manager.Barrier(workers)
            calls = [(reader, path, images, barrier, seed) for seed in range(workers)]
            found += pool.starmap(_cost, calls, chunksize=1)
    return Cost(*(statistics.median(figures) for figures in zip(*found, strict=True)))


def _cost(reader: str, path: Path, images: int, all_have_read: Barrier, seed: int) -> Cost:
    module, opened = READERS[reader]
    importlib.import_module(module)
    before, start = resident(), time.perf_counter()
    read = opened(path)
    read(0)
    opening, start = time.perf_counter() - start, time.process_time()
    for image in np.random.default_rng(seed).integers(images, size=RECORDS):
        read(int(image))
    record = (time.process_time() - start) / RECORDS
    all_have_read.wait()
    private, mapped = (after - each for after, each in zip(resident(), before, strict=True))
    all_have_read.wait()
    return Cost(opening, record, private, mapped)


def resident() -> tuple[float, float]:
    """MB of memory that are this process's own, and MB of files' pages that it has touched."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return kilobytes["RssAnon"] / 1024, kilobytes["RssFile"] / 1024


def index_of_coco_size() -> Iterator[Row]:
    """Opening an index of 100,000 images and 1.5 million masks, and what its workers hold."""
    folder = large_index(IMAGES)
    one = cost("index", folder, IMAGES, runs=3)
    workers = cost("index", folder, IMAGES, workers=WORKERS)
    yield row("index_file", (folder / "images.arrow").stat().st_size / 2**20, "MB")
    yield row("index_open_seconds", one.opening, "s", at_most=1)
    yield row("index_record", 1000 * one.record, "ms")
    yield row("index_rss_mb", one.private, "MB", at_most=100)
    yield row("index_mapped_mb", one.mapped, "MB")
    yield row(f"index_rss_of_{WORKERS}_workers_over_1", workers.private / one.private)


def beside_other_readers() -> Iterator[Row]:
    """How the readers of COCO and LVIS do with a tenth of it; memory with the pages that were touched."""
    folder = large_index(IMAGES_OF_APIS)
    file = as_coco(folder)
    ours = cost("index", folder, IMAGES_OF_APIS, runs=3)
    for reader in ("pycocotools", "lvis_api"):
        if importlib.util.find_spec(READERS[reader][0]) is None:
            print(f"{reader} is left out: pip install --no-deps lvis")  # it asks for OpenCV with windows
            continue
        theirs = cost(reader, file, IMAGES_OF_APIS, runs=3)
        yield row(f"{reader}_open", theirs.opening, "s")
        yield row(f"{reader}_open_over_index", theirs.opening / ours.opening)
        yield row(f"{reader}_rss_mb", theirs.resident, "MB")
        yield row(f"{reader}_rss_over_index", theirs.resident / ours.resident)
        yield row(f"{reader}_private_over_index", theirs.private / ours.private)


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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
        "samples": (partial(training_samples, root),),
        "index": (index_of_coco_size, beside_other_readers),
        "clicks": (click_speed, click_equality),
        "store": (partial(samples_from_store, root),),
    }
    chosen = suites[arguments.only] if arguments.only else sum(suites.values(), ())
    report("data", (each for suite in chosen for each in suite()))


if __name__ == "__main__":
    main()
