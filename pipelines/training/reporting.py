"""What the first worker of a training tells the world: the progress board and MLflow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mlflow.exceptions import MlflowException
from ray.actor import ActorHandle
from torch.utils.data import default_collate

from mst.config import Config
from mst.data.pixels.images import RGB
from mst.data.sampling.sampler import SampleKey, Shard
from mst.data.sampling.training_set import Batch, TrainingSet
from mst.model import MST
from mst.model.flops import PartsFlops, peak_flops
from mst.pictures import training_sheet
from mst.training import EpochReport, StepReport, TrainingState, simulate_clicks
from mst.training.sides import flops_by_side
from mst.training.step import autocast, flops_of_step
from pipelines.training.progress import Smoothed, post
from pipelines.training.tracking import TrackedRun, metric_name

_log = logging.getLogger(__name__)

_PICTURED = 4  # samples of a picture, the same at each validation


class Leader:
    """Logs what a training reports.

    Args:
        tracked: the run in MLflow.
        board: shows the progress; None for no board.
        config: of the experiment.
        training_set: whose first samples are pictured.
        shard: the first worker's.
    """

    def __init__(
        self,
        tracked: TrackedRun,
        board: ActorHandle | None,
        config: Config,
        training_set: TrainingSet,
        shard: Shard,
    ) -> None:
        self._tracked, self._board, self._config = tracked, board, config
        self._training_set, self._shard = training_set, shard
        self._smoothed = Smoothed()
        self._flops: dict[int, PartsFlops] = {}

    def note(self, text: str) -> None:
        """Show a line above the bar."""
        if self._board:
            self._board.note.remote(text)

    def begin(self, more: str) -> None:
        """Say what is trained on, and what was left out of it; MLflow keeps the figures."""
        self.note(f"{self._training_set}; {more}")
        data = self._training_set
        figures = {"data/images": len(data), "data/images_without_objects": data.without_objects}
        figures |= {f"data/left_out/{metric_name(kind)}": count for kind, count in data.left_out.items()}
        with _tolerant():
            self._tracked.log(figures, 0)

    def take(self, report: StepReport | EpochReport, state: TrainingState) -> None:
        """Show a report, and log it if it is one of those to be logged."""
        if isinstance(report, EpochReport):
            self._epoch(report, state)
        else:
            self._step(report, state.model)

    def _step(self, report: StepReport, model: MST) -> None:
        smooth = self._smoothed.update(report.metrics)
        if self._board:
            post(self._board, report, smooth, self._config)
        if report.step % self._config.train.log_every == 0:
            metrics = report.metrics | {"workers": float(self._shard.world_size)}
            if torch.cuda.is_available():
                metrics |= self._of_gpu(report, model)
            with _tolerant():
                self._tracked.log(metrics, report.step)

    def _of_gpu(self, report: StepReport, model: MST) -> dict[str, float]:
        """The memory that the first GPU's worker took at most, and how much of the cards' peak is used."""
        figures = {"gpu_memory_gib": torch.cuda.max_memory_allocated() / 2**30}
        if peak := peak_flops(torch.cuda.get_device_name()):
            self._flops = self._flops or flops_by_side(model, self._config)
            flops = flops_of_step(report.step, self._config, self._flops)
            done = report.metrics["images_per_second"] * flops
            figures["mfu"] = done / (peak * self._shard.world_size)
        return figures

    def _epoch(self, report: EpochReport, state: TrainingState) -> None:
        train, summary = self._config.train, report.summary
        with _tolerant():
            self._tracked.log(report.metrics, state.step - 1)
            self._tracked.log_picture(self._picture(state.model), "samples", state.step)
        nocs = "  ".join(f"NoC@{target} {value:.2f}" for target, value in summary.noc.items())
        line = f"epoch {report.epoch + 1}/{train.epochs}  IoU@1 {summary.iou[0]:.3f}  {nocs}"
        if skipped := report.metrics["skipped_samples"]:
            line += f"  {skipped:.0f} images replaced that cannot be used, named in the workers' logs"
        self.note(line)
        if state.is_finished(self._config) and state.step < train.steps:
            self.note(f"stopped early: {state.stale} validations without a better one")

    @torch.no_grad()
    def _picture(self, model: MST) -> RGB:
        """Show what the model makes of some samples after one click on its own errors."""
        keys = [SampleKey(0, each, each % len(self._training_set)) for each in range(_PICTURED)]
        batch = Batch(*default_collate([self._training_set[key] for key in keys])).to(model.mean.device)
        image = batch.image.float() / 255
        with autocast(self._config, image.device):
            clicks, prev_mask = simulate_clicks(
                model, image, batch, min(1, self._config.clicks.max_iterations), self._config
            )
            output = model.eval()(image, clicks, prev_mask)
        model.train()
        return training_sheet(batch, clicks, prev_mask, output, self._config.eval.threshold)


@contextmanager
def _tolerant() -> Iterator[None]:
    """Let a training go on where MLflow fails: a point of a curve is not worth a run."""
    try:
        yield
    except MlflowException as error:
        _log.warning("not logged: %s", error)
