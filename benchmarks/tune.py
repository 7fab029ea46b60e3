"""What a sweep costs around the trainings that it is made of, on two cores.

    make bench-tune

`seconds_per_trial_outside_training` is by how much each trial lengthens a sweep beside its training: the
sweep's time, less that of its trainings from their first step to their last validation, of which two run at a
time on a core each, for each trial. It is what starting its processes, reading weights and data, reporting,
deciding and ending cost.
"""

import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from mlflow.entities import Metric
from rich.console import Console
from upath import UPath

from benchmarks.shared.harness import Row, report, row
from benchmarks.train import experiment
from mst.data.synthetic import write_data_set
from mst.overrides import override
from pipelines.cluster import connect
from pipelines.sweeping.budget import Limits
from pipelines.sweeping.plan import planned
from pipelines.sweeping.sweep import sweep
from pipelines.sweeping.table import SweepView
from pipelines.training.tracking import TrackedRun, find_run, open_run

_CORES, _TRIALS = 2, 6
_SPACE = {"model.k_ratio": {"uniform": (0.05, 0.5)}, "optim.lr": {"loguniform": (1e-5, 1e-3)}}


def seconds_of_training(run: TrackedRun) -> float:
    """From the start of a training's first step to its last validation."""
    client = run.client()
    steps: list[Metric] = client.get_metric_history(run.run_id, "images_per_second")
    batch = float(client.get_run(run.run_id).data.params["train.batch_size"])
    first, last = steps[0], client.get_metric_history(run.run_id, "val_score")[-1]
    return (last.timestamp - first.timestamp) / 1000 + batch / first.value


def rows(folder: Path) -> Iterator[Row]:
    """All figures."""
    write_data_set(folder / "data", (60, 4, 4), processes=2)
    settings = {"train.epochs": 2, "train.choose_by": "iou", "model.size": "tiny", "model.depth": 4}
    config = override(experiment(folder / "data", 112, 8, 8), settings)
    runs, uri = UPath(folder) / "sweep", f"sqlite:///{folder / 'mlflow.db'}"
    runs.mkdir()
    plan = planned(config, _SPACE, _TRIALS, scheduler="none")
    connect(num_cpus=_CORES)
    parent = open_run(uri, runs, config)
    start = time.monotonic()
    trials, _ = sweep(plan, runs, parent, Limits(), SweepView(plan, Console(file=io.StringIO()), _CORES))
    taken = time.monotonic() - start
    ray.shutdown()
    found = [find_run(uri, runs / each.name) for each in trials]
    training = sum(seconds_of_training(run) for run in found if run)
    outside = (taken - training / _CORES) / len(trials)
    yield row("seconds_per_trial_in_training", training / _CORES / len(trials), "s")
    yield row("seconds_per_trial_outside_training", outside, "s", at_most=10)


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        report("tune", rows(Path(folder)))


if __name__ == "__main__":
    main()
