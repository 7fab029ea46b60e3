"""Arms of a study: trained at equal budget with several seeds, and clicked on the same held-out objects.

A run is one process with one thread, as many at once as there are cores. What is done is kept, and found
there again: the same command goes on. The photos are made as `pipelines.recipes.photos.mst_small_head` says.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from benchmarks.shared.harness import Row, difference, row
from benchmarks.shared.photos import PHOTOS
from mst.command_line import count
from mst.config import Config
from mst.errors import TrainingError
from mst.evaluation import ObjectRecord
from mst.evaluation.metrics import number_of_clicks
from mst.evaluation.statistics import bootstrap_interval, paired_comparison
from mst.training.checkpoints import newest
from pipelines import cluster
from pipelines.cluster import Resources
from pipelines.evaluation.actors import Actors
from pipelines.promotion.comparison import Terms, evaluate_on
from pipelines.storage import PROJECT

SHORT = {
    "optim.warmup_steps": 20,
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.checkpoint_every": 0,
    "train.validate_every": 3,
    "train.val_objects": 4,
}
"""The recipe `mst_small_head` in three epochs, which end with the checkpoint that counts."""

HEAD_FIRST = {
    "optim.lr": 1.5e-3,
    "optim.schedule": "step",
    "optim.milestones": [1],  # then what follows the ViT learns at 1.5e-4, and the ViT at 1e-5
    "optim.backbone_lr_scale": 0.067,
    "optim.click_lr_scale": 0.33,
    "optim.fusion_lr_scale": 0.5,
    "train.freeze_epochs": 1,
}
"""How a whole network learns then: the second and third epoch train all."""

_SECONDS = "seconds.json"


class Job(NamedTuple):
    """One training of a study."""

    arm: str
    seed: int


def add_options(parser: argparse.ArgumentParser, runs: str) -> None:
    """Add what all studies of arms are asked; `runs` is the folder in `runs/` that keeps the trainings."""
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument(
        "--samples", type=count, default=2400, help="samples that a run sees, a multiple of 24"
    )
    parser.add_argument("--objects", type=count, default=100, help="held out, evenly spread")
    parser.add_argument("--max-clicks", type=count, default=20, help="most clicks on an object")
    parser.add_argument("--runs", type=Path, default=PROJECT / "runs" / runs)


def train_all(jobs: Mapping[Job, tuple[Path, Config]]) -> dict[Job, Path]:
    """Train each job in its folder, unless that is done, and return the checkpoints.

    Raises:
        TrainingError: one ended with an error; those that had not begun do not begin.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {job: pool.submit(_train, *each) for job, each in jobs.items()}
        try:
            return {job: future.result() for job, future in futures.items()}
        except TrainingError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _train(folder: Path, config: Config) -> Path:
    found = newest(UPath(folder))
    if not (found and found.is_finished):
        folder.mkdir(parents=True, exist_ok=True)
        settings, start = folder / "settings.json", time.monotonic()
        settings.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "mst.training", str(settings), "--out", str(folder)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "log.txt").open("a") as log:
            done = subprocess.run(command, env=one_thread, stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            last = (folder / "log.txt").read_text().strip().rpartition("\n")[2]
            raise TrainingError(f"{folder.name}: {last} ({folder / 'log.txt'} has all of it)")
        (folder / _SECONDS).write_text(json.dumps(_seconds(folder) + time.monotonic() - start))
        found = newest(UPath(folder))
    assert found is not None
    print(f"{folder.name}: {found.path}", flush=True)
    return Path(str(found.path))


def _seconds(folder: Path) -> float:
    path = folder / _SECONDS
    return float(json.loads(path.read_text())) if path.exists() else 0.0


def training_minutes(folders: Mapping[Job, Path]) -> Iterator[Row]:
    """How long an arm's trainings took, on the mean of its seeds."""
    for arm in dict.fromkeys(each.arm for each in folders):
        taken = [_seconds(folder) for job, folder in folders.items() if job.arm == arm]
        yield row(f"{arm}_training", sum(taken) / len(taken) / 60, "min")


def click_all(
    checkpoints: Mapping[Job, Path], objects: int, max_clicks: int
) -> dict[Job, Sequence[ObjectRecord]]:
    """Click each checkpoint on the held-out objects, by the protocol of the evaluation."""
    cluster.connect()
    terms = Terms(
        data={"val": f"index:{PHOTOS / 'val'}?images={PHOTOS}"},
        max_clicks=max_clicks,
        max_objects=objects,
        keep=PROJECT / "out" / "evaluations",
    )
    with Actors(Resources(num_workers=os.cpu_count() or 1)) as actors:
        return {job: _clicked(checkpoint, terms, actors) for job, checkpoint in checkpoints.items()}


def _clicked(checkpoint: Path, terms: Terms, actors: Actors) -> Sequence[ObjectRecord]:
    (found,) = evaluate_on(checkpoint, terms, actors).values()
    return found.evaluation.records


Figure = Callable[[ObjectRecord], float]
"""A number of an object."""


def figures(max_clicks: int) -> dict[str, Figure]:
    """What is told of arms: NoC@85 and NoC@90, of at most `max_clicks` clicks, and the IoU after one."""
    return {
        "noc85": lambda each: number_of_clicks(each.ious, 0.85, max_clicks),
        "noc90": lambda each: number_of_clicks(each.ious, 0.90, max_clicks),
        "iou_at_1": lambda each: each.ious[0],
    }


def means(records: Mapping[Job, Sequence[ObjectRecord]], figure: Figure) -> dict[str, NDArray[np.float64]]:
    """A figure by arm, (seeds, objects)."""
    found: dict[str, list[list[float]]] = {}
    for job, objects in records.items():
        found.setdefault(job.arm, []).append([figure(each) for each in objects])
    return {arm: np.array(values) for arm, values in found.items()}


def rows(records: Mapping[Job, Sequence[ObjectRecord]], max_clicks: int, baseline: str) -> Iterator[Row]:
    """The figures of each arm, their intervals over images, and how they differ from the baseline's."""
    images = [each.image_id for each in next(iter(records.values()))]
    for name, figure in figures(max_clicks).items():
        unit = "clicks" if name.startswith("noc") else ""
        found = means(records, figure)
        for arm, values in found.items():
            mean = values.mean(0)
            interval = bootstrap_interval(mean, images)
            yield row(f"{arm}_{name}", float(mean.mean()), unit)
            yield row(f"{arm}_{name}_low", interval.low, unit)
            yield row(f"{arm}_{name}_high", interval.high, unit)
            yield row(f"{arm}_{name}_deviation_of_seeds", float(values.mean(1).std()), unit)
            if arm != baseline:
                compared = paired_comparison(mean, found[baseline].mean(0), images)
                yield from difference(f"{arm}_{name}_less_{baseline}", compared, unit)
                yield row(f"{arm}_{name}_less_{baseline}_p", compared.p, "")
