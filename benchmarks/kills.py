"""What a killed worker costs: kill -9 of a random rank of a training, at many random moments.

    make bench-kills                                   # 20 kills, some ten minutes
    .venv/bin/python -m benchmarks.kills --kills 3

A small training of two workers runs undisturbed first. Then it runs again for each kill, every third of which
comes while a checkpoint is being written; the others come at any moment from the first worker's start on. All
must end with the undisturbed run's weights, to the bit.
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from ray.util.state import list_actors
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from upath import UPath

from benchmarks.shared.harness import OUT
from mst.checkpoint import WEIGHTS, verify
from mst.config import Config
from mst.data.synthetic import write_data_set
from mst.overrides import override
from mst.training.checkpoints import newest, on_this_machine
from pipelines.cluster import Resources, connect
from pipelines.training.driver import Trained, train_driver

_LOOK = 0.001  # seconds between two looks for a checkpoint that is being written


@dataclass(frozen=True)
class Kill:
    """One killed run."""

    moment: str
    step: int
    """Steps that had been logged."""
    lost_steps: int
    """Steps that were taken twice."""
    seconds_to_recover: float
    """From the kill to the next step or validation, or to the end where all were done."""
    is_equal: bool
    """Whether the weights in the end are those of the undisturbed run."""


def small(data: Path) -> Config:
    """A training of 60 steps that takes some ten seconds on two cores, with a checkpoint every four."""
    return override(
        Config(),
        {
            "model.size": "tiny",
            "model.depth": 2,
            "model.fusion_stages": 1,
            "model.image_size": 112,
            "data.root": str(data),
            "data.resize": "4,12",
            "clicks.max_iterations": 1,
            "optim.lr": 1e-3,
            "optim.ema": 0.9,
            "train.epochs": 3,
            "train.samples_per_epoch": 160,
            "train.batch_size": 8,
            "train.micro_batches": 2,
            "train.checkpoint_every": 4,
            "train.log_every": 1,
            "train.val_objects": 4,
            "train.val_clicks": 3,
            "train.choose_by": "iou",
        },
    )


def digest(run: UPath) -> str:
    """The sha256 of a finished run's weights."""
    found = newest(run)
    assert found is not None
    assert found.is_finished
    with on_this_machine(found.path) as folder:
        return str(verify(folder)["sha256"][WEIGHTS])


def workers() -> list[int]:
    """The processes of the training that runs, by their numbers."""
    alive = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    return [actor.pid for actor in alive if actor.pid]


def is_writing(run: UPath) -> bool:
    """Whether a checkpoint is being written just now."""
    return any(Path(str(run)).glob(".step_*.part"))


def kill(pid: int) -> bool:
    """Kill a process; False where it had just ended by itself, as a rank that has nothing more to do."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def run_and_kill(
    config: Config, run: UPath, uri: str, delay: float | None, rng: random.Random
) -> tuple[Trained, float]:
    """Train, and kill a rank `delay` seconds after the workers' start, or while a checkpoint is written.

    Returns:
        What was trained, and when the rank was killed; 0 where the training ended before.
    """
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train_driver, config, run, Resources(num_workers=2), uri=uri)
        there: list[int] = []
        while not training.done() and len(there) < 2:
            there = workers()
        start, checkpoints = time.monotonic(), rng.randrange(1, 4)

        def has_come() -> bool:
            if delay is not None:
                return time.monotonic() - start > delay
            return is_writing(run) and len(list(Path(str(run)).glob("step_*"))) >= checkpoints

        killed = 0.0
        while not training.done():
            if has_come() and kill(rng.choice(there)):
                killed = time.time()
                break
            time.sleep(_LOOK)
        return training.result(), killed


def measured(trained: Trained, killed: float, moment: str, is_equal: bool) -> Kill:
    """What a kill cost, by the curves that the run left."""
    client, run_id = trained.run.client(), trained.run.run_id
    steps = client.get_metric_history(run_id, "loss")
    points = [*steps, *client.get_metric_history(run_id, "val_score")]
    times = sorted(point.timestamp / 1000 for point in points)
    # A survivor may log once more: what comes after the longest silence is the new group's.
    silences = [
        (after - before, after) for before, after in itertools.pairwise([killed, *times]) if after > killed
    ]
    resumed = max(silences)[1] if silences else client.get_run(run_id).info.end_time / 1000
    return Kill(
        moment=moment,
        step=len({point.step for point in steps if point.timestamp / 1000 <= killed}),
        lost_steps=len(steps) - len({point.step for point in steps}),
        seconds_to_recover=resumed - killed,
        is_equal=is_equal,
    )


def kills(count: int, folder: Path, seed: int = 0) -> Iterator[Kill]:
    """Kill so many trainings, one after the other."""
    rng = random.Random(seed)
    write_data_set(folder / "data", (40, 4, 4), processes=2)
    config, uri = small(folder / "data"), f"sqlite:///{folder / 'mlflow.db'}"
    train_driver(config, UPath(folder) / "warm-up", Resources(num_workers=2), uri=uri)
    start = time.monotonic()
    train_driver(config, UPath(folder) / "undisturbed", Resources(num_workers=2), uri=uri)
    seconds, expected = time.monotonic() - start, digest(UPath(folder) / "undisturbed")
    done = 0
    for number in itertools.count():
        delay = None if done % 3 == 2 else rng.uniform(0, 0.7 * seconds)
        run = UPath(folder) / f"killed_{number}"
        trained, killed = run_and_kill(config, run, uri, delay, rng)
        if killed:  # or the training was over before the moment came
            moment = "checkpoint" if delay is None else f"{delay:.1f} s"
            yield measured(trained, killed, moment, digest(run) == expected)
            done += 1
        shutil.rmtree(str(run))
        if done == count:
            return


def show(found: list[Kill]) -> None:
    """Print a line for each kill, and what they cost."""
    console, table = Console(highlight=False), Table(title="kill -9 of one of two ranks", box=SIMPLE_HEAD)
    for column in ("moment", "at step", "lost steps", "seconds to recover", "same weights"):
        table.add_column(column, justify="right")
    for each in found:
        same = "yes" if each.is_equal else "[red]no"
        seconds = f"{each.seconds_to_recover:.1f}"
        table.add_row(each.moment, str(each.step), str(each.lost_steps), seconds, same)
    console.print(table)
    lost, seconds_taken = [each.lost_steps for each in found], [each.seconds_to_recover for each in found]
    console.print(
        f"finished with the undisturbed run's weights: {sum(each.is_equal for each in found)} of {len(found)}"
    )
    console.print(f"lost steps: median {statistics.median(lost):g}, most {max(lost)}")
    console.print(
        f"seconds to recover: median {statistics.median(seconds_taken):.1f}, most {max(seconds_taken):.1f}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="What a killed worker costs.")
    parser.add_argument("--kills", type=int, default=20, help="how many")
    arguments = parser.parse_args()
    connect(num_cpus=2)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for each in kills(arguments.kills, Path(folder)):
            found.append(each)
            print(each, flush=True)
    ray.shutdown()
    show(found)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "kills.json").write_text(json.dumps([asdict(each) for each in found], indent=2))


if __name__ == "__main__":
    main()
