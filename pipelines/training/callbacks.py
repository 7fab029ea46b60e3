"""What Ray Train's controller calls: its process imports this file, and so this file imports little."""

from typing import Any

from ray.train import UserCallback
from ray.util.queue import Queue

from mst.errors import CheckpointError, ConfigError, ImageError, TrainingError

LASTING = (ConfigError, CheckpointError, ImageError, TrainingError)
"""Errors that another try would meet again; a `DataError` may come of a store that was away."""


class StopAtLastingErrors(UserCallback):
    """Ends a training at an error of ours at once, which Ray Train would try again `max_failures` times."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the first such error of a worker, which ends the controller."""
        for error in worker_exceptions.values():
            if isinstance(error, LASTING):
                raise error


class Forward(UserCallback):
    """Passes the first worker's validations on to a trial's process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass on what was reported."""
        self._queue.put(metrics[0])
