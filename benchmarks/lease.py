"""What a GPU that is lent for minutes, without a network, is given, does and gives back: `benchmarks.gpu`.

data/gpu/photos     a data root (`mst.data.compact`) of photos of at most 512 px
data/gpu/wheels     what of our dependencies such a machine lacks
data/gpu/weights    the last checkpoint's weights, in fp16
"""

import json
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from upath import UPath

from benchmarks.harness import OUT, Row, row
from mst.checkpoint import load_model, save_checkpoint, verify
from mst.config import Config
from mst.data.compact import compact
from mst.data.sampler import Shard
from mst.errors import CheckpointError, DataError
from mst.evaluation import Summary
from mst.model.flops import forward_flops, peak_flops
from mst.training import EpochReport, StepReport, TrainingState, fit
from mst.training.loop import validate
from mst.training.resume import read_data, start
from mst.training.step import passes

PACK = Path("data/gpu")
PHOTOS, WHEELS, WEIGHTS = PACK / "photos", PACK / "wheels", PACK / "weights"
TRAINED = OUT.parent / "gpu_training"

HOLD_OUT = "coco:coco/annotations/instances_val2017.json"
SOURCES = (
    "coco:coco/annotations/instances_train2017.json",
    "lvis:lvis/lvis_v0.5_val_subset.json?images=coco",
    "labels:bsds",
)
MISSING = (
    *("annotated-types", "botocore", "fsspec", "jmespath", "pathlib-abc", "pycocotools", "pydantic"),
    *("pydantic-core", "typing-extensions", "typing-inspection", "universal-pathlib"),
)
"""Packages that a machine with PyTorch, timm, OpenCV and pyarrow lacks, or has in too old a version."""

MOST_CARRIED = 56 * 2**20  # bytes for one call, beside the project itself
PART = 15 * 2**20  # bytes of a file that is given back
_TAR, _CURVE = "checkpoint.tar", "curve.jsonl"
_SAVE_EVERY = 120.0  # seconds
_WARM_UP = 20  # steps that are slower than the rest


def pack(data: Path, checkpoint: Path, folder: Path = PACK, python: str = "3.12") -> Iterator[Row]:
    """Make what is carried, as far as it is not there, and yield the sizes.

    Args:
        data: the folder of `coco/`, `lvis/` and `bsds/`.
        checkpoint: whose weights training goes on from; these are packed anew.
        folder: to write.
        python: version that the wheels are for.

    Raises:
        DataError, CheckpointError: the data or the checkpoint cannot be read, or a part is too large.
    """
    photos, wheels, weights = (folder / each.name for each in (PHOTOS, WHEELS, WEIGHTS))
    if not photos.exists():
        compact(SOURCES, HOLD_OUT, UPath(data), photos, side=512, quality=65)
    if not wheels.exists():
        _download(wheels, python)
    model, config = load_model(checkpoint)
    save_checkpoint(weights, _halved(model.state_dict()), config)
    for name, paths in (("photos_and_wheels", (photos, wheels)), ("weights", (weights,))):
        size = sum(each.stat().st_size for path in paths for each in path.rglob("*") if each.is_file())
        yield row(f"{name}_carried", size / 2**20, "MiB", at_most=MOST_CARRIED / 2**20)
        if size > MOST_CARRIED:
            raise DataError(f"{folder}: {name} are too large for one call; lower quality or side in `pack`")


def _download(wheels: Path, python: str) -> None:
    platforms = [f"manylinux{each}_x86_64" for each in ("1", "2014", "_2_17", "_2_27", "_2_28")]
    options = [word for each in platforms for word in ("--platform", each)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", *options, "-c", "constraints.txt"]
    subprocess.run([*command, "-d", str(wheels), *MISSING], check=True)


def train(
    config: Config, device: torch.device, seconds: float, out: Path, trained: Path = TRAINED
) -> Iterator[Row]:
    """Train for so long, validate, and yield what that came to.

    Args:
        config: of the experiment; its schedule ends with its own last step, if that comes sooner.
        device: to train on.
        seconds: after which no step is begun.
        out: folder for the parts of the checkpoint, which `join` puts together.
        trained: folder of the checkpoint and the curve, which the next call can start from.

    Raises:
        MSTError: as `read_data`, `start` and `fit` say.
    """
    begun = time.monotonic()
    training_set, samples = read_data(config)
    state, origin = start(config, None, device)
    print(f"{len(training_set)} images, {len(samples)} validation objects; weights: {origin}", flush=True)
    trained.mkdir(parents=True, exist_ok=True)
    steps: list[StepReport] = []
    summary, saved = None, begun
    with (trained / _CURVE).open("w") as curve:
        for report in fit(config, state, training_set, samples, Shard()):
            if isinstance(report, EpochReport):
                summary = report.summary if state.is_finished(config) else None
                continue
            steps.append(report)
            print(json.dumps({"step": report.step, **report.metrics}), file=curve, flush=True)
            if time.monotonic() - begun > seconds:
                break
            if time.monotonic() - saved > _SAVE_EVERY:
                give_back(state, config, {}, trained, out)
                saved = time.monotonic()
    give_back(state, config, {}, trained, out)  # before a validation, which may take too long
    summary = summary or validate(state, samples, config, Shard())
    give_back(state, config, summary.metrics(), trained, out)
    yield from _figures(config, state, steps, summary)


def give_back(
    state: TrainingState, config: Config, metrics: Mapping[str, float], trained: Path, out: Path
) -> None:
    """Write the weights in fp16 as a checkpoint, and it and the curve as parts of one archive."""
    folder = trained / "checkpoint"
    save_checkpoint(folder, _halved(state.weights()), config, metrics=metrics, progress={"step": state.step})
    archive = trained / _TAR
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, folder.name)
        tar.add(trained / _CURVE, _CURVE)
    out.mkdir(parents=True, exist_ok=True)
    with archive.open("rb") as file:
        parts = iter(lambda: file.read(PART), b"")
        for number, part in enumerate(parts):
            (out / f"{_TAR}.{number}").write_bytes(part)


def join(parts: Path, out: Path) -> Path:
    """Put together what `train` gave back, and return the checkpoint's folder.

    Raises:
        CheckpointError: parts are missing or damaged.
    """
    found = sorted(parts.glob(f"{_TAR}.*"), key=lambda each: int(each.suffix[1:]))
    out.mkdir(parents=True, exist_ok=True)
    archive = out / _TAR
    archive.write_bytes(b"".join(each.read_bytes() for each in found))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(out, filter="data")
    except tarfile.TarError as error:
        raise CheckpointError(f"{parts}: {len(found)} parts make no whole checkpoint ({error})") from None
    finally:
        archive.unlink()
    verify(out / "checkpoint")
    return out / "checkpoint"


def _halved(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: weight.half() for name, weight in weights.items()}


def _figures(
    config: Config, state: TrainingState, steps: Sequence[StepReport], summary: Summary
) -> Iterator[Row]:
    """Speed, and what the clicks of the validation reach."""
    size, warm = config.train.batch_size, steps[_WARM_UP:] or steps
    seconds = sum(size / each.metrics["images_per_second"] for each in warm)
    yield row("training_samples", size * len(steps), "samples")
    yield row("training", size * len(warm) / seconds, "img/s")
    waits = [each.metrics["data_wait_share"] for each in warm]
    yield row("training_data_wait_share", statistics.mean(waits), "")
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peak:
        forwards = sum(passes(each.step, config) for each in warm)
        yield row("training_mfu", forwards * size * forward_flops(state.model) / seconds / peak, "")
    for name, value in summary.metrics().items():
        yield row(f"val_{name}", value, "")
