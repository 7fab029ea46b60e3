"""Train on a machine without a network, within a time limit: what it is given, does and gives back.

FOLDER/photos     a data root (`mst.data.compact`)
FOLDER/site       those of our dependencies that such a machine lacks
FOLDER/weights    the weights to go on from, in fp16

Nothing here imports Ray or MLflow, which such a machine need not have.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from upath import UPath

from mst.checkpoint import load_model, save_checkpoint, verify
from mst.config import Config
from mst.data.compact import compact
from mst.data.files import size_of
from mst.data.sampling.sampler import Shard
from mst.data.sampling.training_set import TrainingSet
from mst.data.sources import SampleSet
from mst.errors import CheckpointError, DataError
from mst.evaluation import Summary, summarize
from mst.model.flops import peak_flops
from mst.overrides import override
from mst.training import EpochReport, StepReport, TrainingState, fit
from mst.training.loop import validate, validation_score
from mst.training.resume import read_data, start
from mst.training.sides import flops_by_side
from mst.training.step import flops_of_step

PHOTOS, SITE, WEIGHTS = "photos", "site", "weights"
FIGURES = "figures.json"

MISSING = (
    *("annotated-types", "botocore", "fsspec", "jmespath", "pathlib-abc", "pycocotools", "pydantic"),
    *("pydantic-core", "typing-extensions", "typing-inspection", "universal-pathlib"),
)
"""Packages that a machine with PyTorch, timm, OpenCV and pyarrow lacks, or has in too old a version."""

PART = 15 * 2**20
"""Bytes of a file that is given back."""

_TAR, _CURVE = "checkpoint.tar", "curve.jsonl"
_SAVE_EVERY = 170.0  # seconds
_WARM_UP = 60  # steps that are slower than the rest, some of which compile
_MEASURED = 260  # steps after which the pace is known
_SPARE = 0.06  # of the time, for validations


@dataclass(frozen=True)
class Load:
    """What is packed of a data root."""

    sources: Sequence[str]
    hold_out: str
    """The source of which a part is for validation."""
    root: UPath
    side: int = 608
    """Largest side of an image, in pixels."""
    quality: int = 65
    """Of JPEG."""


def pack(load: Load, checkpoint: Path, folder: Path, *, most: int, python: str = "3.12") -> dict[str, int]:
    """Make what is carried, as far as it is not there; the weights are packed anew.

    Args:
        load: the data.
        checkpoint: whose weights the training goes on from.
        folder: to write.
        most: bytes that one transfer may have: photos and packages are one, the weights another.
        python: version that the packages are for.

    Returns:
        The bytes of each transfer, by what it holds.

    Raises:
        DataError, CheckpointError: the data or the checkpoint cannot be read, or a transfer is too large.
    """
    photos, site, weights = (folder / name for name in (PHOTOS, SITE, WEIGHTS))
    model, config = load_model(checkpoint)
    if not photos.exists():
        compact(load.sources, load.hold_out, load.root, photos, side=load.side, quality=load.quality)
    if not site.exists():
        _install(site, python)
    save_checkpoint(weights, _halved(model.state_dict()), config)
    sizes = {}
    for name, paths in (("photos and packages", (photos, site)), ("weights", (weights,))):
        sizes[name] = sum(map(size_of, paths))
        if sizes[name] > most:
            raise DataError(
                f"{folder}: {name} have {sizes[name]} bytes, at most {most} may be carried; "
                "lower --quality or --side"
            )
    return sizes


def _install(site: Path, python: str) -> None:
    platforms = [f"manylinux{each}_x86_64" for each in ("1", "2014", "_2_17", "_2_27", "_2_28")]
    options = [word for each in platforms for word in ("--platform", each)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *options]
    command += ["-c", "constraints.txt", "--target", str(site), *MISSING]
    subprocess.run(command, check=True)
    shutil.rmtree(site / "botocore" / "data")  # of AWS's services; its exceptions are what is needed


def train(config: Config, device: torch.device, seconds: float, out: Path, trained: Path) -> dict[str, float]:
    """Train for so long, validate now and then, give the best weights back, and return what that came to.

    Args:
        config: of the experiment; its length is what fits the time.
        device: to train on.
        seconds: after which no step is begun.
        out: folder for the parts of the checkpoint, which `unpack` puts together.
        trained: folder of the checkpoint and the curve, which the next call can start from.

    Raises:
        MSTError: as `read_data`, `start` and `fit` say.
    """
    begun = saved = time.monotonic()
    training_set, samples = read_data(config)
    state, origin = start(config, None, device)
    print(f"{training_set}; {len(samples)} validation objects; weights: {origin}", flush=True)
    trained.mkdir(parents=True, exist_ok=True)
    steps: list[StepReport] = []
    best: Summary | None = None
    with (trained / _CURVE).open("w") as curve:
        for report in _fit(config, state, training_set, samples, begun + seconds):
            if isinstance(report, EpochReport):
                best = _keep_better(report.summary, best, state, config, trained, out)
                continue
            steps.append(report)
            print(json.dumps({"step": report.step, **report.metrics}), file=curve, flush=True)
            is_over = time.monotonic() - begun > seconds
            if is_over or time.monotonic() - saved > _SAVE_EVERY:
                found = summarize(validate(state, samples, config, Shard()), config.train.val_clicks)
                best = _keep_better(found, best, state, config, trained, out)
                saved = time.monotonic()
            if is_over:
                break
    assert best is not None
    figures = _figures(config, state, steps, best)
    (out / FIGURES).write_text(json.dumps(figures, indent=2))
    return figures


def _fit(
    config: Config, state: TrainingState, training_set: TrainingSet, samples: SampleSet, deadline: float
) -> Iterator[StepReport | EpochReport]:
    """Train, once the pace is known, for as many steps as there is time for; the last ones learn least."""
    steps: list[StepReport] = []
    reports = fit(config, state, training_set, samples, Shard())
    for report in reports:
        yield report
        steps += [report] if isinstance(report, StepReport) else []
        if len(steps) == _MEASURED:
            break
    reports.close()  # and with it the loader's processes
    if not state.is_finished(config):
        longer = fitting(config, steps, deadline - time.monotonic())
        yield from fit(longer, state, training_set, samples, Shard())


def fitting(config: Config, steps: Sequence[StepReport], seconds: float) -> Config:
    """Return the experiment with its length: the steps so far, and those that there are seconds for."""
    pace = statistics.mean(
        config.train.batch_size / each.metrics["images_per_second"] for each in steps[_WARM_UP:]
    )
    more = max(1, int((1 - _SPARE) * seconds / pace))
    samples = (len(steps) + more) * config.train.batch_size
    return override(config, {"train.epochs": 1, "train.samples_per_epoch": samples})


def _keep_better(
    found: Summary, best: Summary | None, state: TrainingState, config: Config, trained: Path, out: Path
) -> Summary:
    """Give the weights back if they are the best so far, and return the summary of those that are."""
    score = validation_score(found, config)
    print(json.dumps({"step": state.step, "score": score, **found.metrics()}), flush=True)
    if best is not None and score < validation_score(best, config):
        return best
    give_back(state, config, found.metrics(), trained, out)
    return found


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


def unpack(parts: Path, out: Path) -> Path:
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
) -> dict[str, float]:
    """Speed, and what the clicks of the validation reach."""
    size, warm = config.train.batch_size, steps[_WARM_UP:] or steps
    seconds = sum(size / each.metrics["images_per_second"] for each in warm)
    figures = {
        "training_samples": float(size * len(steps)),
        "images_per_second": size * len(warm) / seconds,
        "data_wait_share": statistics.mean(each.metrics["data_wait_share"] for each in warm),
    }
    peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if peak:
        by_side = flops_by_side(state.model, config)
        flops = size * sum(flops_of_step(each.step, config, by_side) for each in warm)
        figures["mfu"] = flops / seconds / peak
    return figures | {f"val_{name}": value for name, value in summary.metrics().items()}
