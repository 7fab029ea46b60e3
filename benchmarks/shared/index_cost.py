"""What an index of the size of COCO-LVIS costs to open, and the same data as JSON by other readers."""

import importlib
import importlib.util
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from upath import UPath

from benchmarks.shared.harness import OUT, Row, row
from mst.clicks import Mask
from mst.data.annotations import ImageRecord
from mst.data.index import Index, to_batch, write_index
from mst.data.pixels.encode import annotate
from mst.data.scenes import SHAPES

IMAGES = 100_000  # of the large index, about all of COCO
IMAGES_OF_APIS = 10_000  # of the one beside which other readers are held; they would take gigabytes
OBJECTS = 15  # of each image
RECORDS = 2_000  # read at random after an index was opened
WORKERS = 4
HEIGHT, WIDTH = 480, 640

Call = Callable[[int], object]


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
