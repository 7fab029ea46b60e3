"""What training costs around its forward and backward passes, and how it scales over workers.

    make bench-train

`two_workers_over_one` compares the speed of `pipelines/train.py` on two Ray workers with that on one, a core
each, for the same batches. `outside_step_share` is the share of time that the loop spends neither in a
forward, nor in a backward, nor in the optimizer's step: reading, augmenting, placing clicks, averaging
weights, reporting. On a GPU the loop's speed, MFU and share of waiting for data are measured instead.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from upath import UPath

from benchmarks.shared.harness import Row, report, row
from mst.config import Config
from mst.data.sampling.sampler import Shard
from mst.data.synthetic import write_data_set
from mst.model.flops import peak_flops
from mst.overrides import override
from mst.training import StepReport, TrainingState, fit, new_state
from mst.training.resume import read_data
from mst.training.sides import flops_by_side
from mst.training.step import flops_of_step
from pipelines.cluster import Resources, connect
from pipelines.training.driver import train_driver

_WARM_UP = 2  # steps that do not count


def experiment(data: Path, image_size: int, batch: int, steps: int) -> Config:
    """MST-small, `steps` steps and a validation of one click."""
    return override(
        Config(),
        {
            "model.size": "small",
            "model.image_size": image_size,
            "data.root": str(data),
            "data.resize": "2,6",
            "optim.ema": 0.99,
            "optim.clip_norm": 1.0,
            "train.epochs": 1,
            "train.samples_per_epoch": steps * batch,
            "train.batch_size": batch,
            "train.log_every": 1,
            "train.val_objects": 1,
            "train.val_clicks": 1,
        },
    )


class Stopwatch:
    """Adds up the time within calls of a network, backward passes and optimizer steps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def start(self, *_: Any) -> None:
        """A call begins."""
        self._start = time.perf_counter()

    def stop(self, *_: Any) -> None:
        """It has ended."""
        self.seconds += time.perf_counter() - self._start

    @contextmanager
    def watching(self, state: TrainingState) -> Iterator[None]:
        """Watch a training as long as the block runs."""
        handles = [
            state.model.register_forward_pre_hook(self.start),
            state.model.register_forward_hook(self.stop),
            state.optimizer.register_step_pre_hook(self.start),
            state.optimizer.register_step_post_hook(self.stop),
        ]
        backward = Tensor.backward

        def watched(*args: Any, **options: Any) -> None:
            self.start()
            backward(*args, **options)  # type: ignore[no-untyped-call]
            self.stop()

        Tensor.backward = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            Tensor.backward = backward  # type: ignore[method-assign]
            for handle in handles:
                handle.remove()


def steps_of(config: Config, state: TrainingState) -> Iterator[StepReport]:
    """The steps of a training in this process."""
    training_set, validation = read_data(config)
    for each in fit(config, state, training_set, validation, Shard()):
        if isinstance(each, StepReport):
            yield each
        if state.step == config.train.steps:
            return


def outside_step_share(config: Config) -> float:
    """Share of a training's time outside of forward, backward and step, on one core."""
    torch.set_num_threads(1)
    state, _ = new_state(config, torch.device("cpu"))
    watch, start, before = Stopwatch(), 0.0, 0.0
    with watch.watching(state):
        for each in steps_of(config, state):
            if each.step + 1 == _WARM_UP:
                start, before = time.perf_counter(), watch.seconds
        taken = time.perf_counter() - start
    return 1 - (watch.seconds - before) / taken


def images_per_second(config: Config, workers: int, folder: Path) -> float:
    """Speed of a training on Ray workers with a core each."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    trained = train_driver(config, UPath(folder) / f"on_{workers}", Resources(num_workers=workers), uri=uri)
    points = trained.run.client().get_metric_history(trained.run.run_id, "images_per_second")
    return statistics.harmonic_mean([point.value for point in points if point.step >= _WARM_UP])


def on_gpu(config: Config) -> Iterator[Row]:
    """Speed of the whole loop on this GPU."""
    settings = {"train.precision": "bf16", "train.compile": True, "data.loader_workers": 12}
    config = override(config, settings)
    state, _ = new_state(config, torch.device("cuda"))
    by_side, peak = flops_by_side(state.model, config), peak_flops(torch.cuda.get_device_name())
    done = list(steps_of(config, state))[config.train.steps // 2 :]
    seconds = sum(config.train.batch_size / each.metrics["images_per_second"] for each in done)
    yield row("train_gpu", len(done) * config.train.batch_size / seconds, "img/s")
    if peak:
        flops = config.train.batch_size * sum(flops_of_step(each.step, config, by_side) for each in done)
        yield row("train_gpu_mfu", flops / seconds / peak, "")
    yield row(
        "train_gpu_data_wait_share", statistics.mean(each.metrics["data_wait_share"] for each in done), ""
    )


def rows(folder: Path) -> Iterator[Row]:
    """All figures."""
    write_data_set(folder / "data", (60, 4, 4), processes=2)
    if torch.cuda.is_available():
        yield from on_gpu(experiment(folder / "data", 448, 64, 60))
        return
    yield row(
        "outside_step_share", outside_step_share(experiment(folder / "data", 448, 4, 8)), "", at_most=0.1
    )
    connect(num_cpus=2)
    # Fewer clicks take less time, and leave more of it to the exchange of gradients.
    config = override(experiment(folder / "data", 448, 8, 6), {"clicks.max_iterations": 1})
    one, two = (images_per_second(config, workers, folder) for workers in (1, 2))
    ray.shutdown()
    yield row("one_worker", one, "img/s")
    yield row("two_workers", two, "img/s")
    yield row("two_workers_over_one", two / one, at_least=1.8)


def main() -> None:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        report("train", rows(Path(folder)))


if __name__ == "__main__":
    main()
