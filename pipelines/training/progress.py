"""Progress of a training that a person can follow: a bar in a terminal, a line now and then elsewhere."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:  # torch would take the board's process seconds to import
    from mst.config import Config
    from mst.training import StepReport

_POLL_SECONDS = 0.5
_LINE_SECONDS = 15.0  # between two lines where there is no terminal
_SMOOTHING = 0.9


class Board:
    """Where the first worker writes how far it is, and the driver reads it."""

    def __init__(self) -> None:
        self._status: dict[str, Any] = {}
        self._notes: list[str] = []

    def post(self, status: dict[str, Any]) -> None:
        """Replace the status."""
        self._status = status

    def note(self, text: str) -> None:
        """Add a line for the reader to print."""
        self._notes.append(text)

    def read(self) -> tuple[dict[str, Any], list[str]]:
        """Return the status and the lines since the last call."""
        notes, self._notes = self._notes, []
        return self._status, notes


class Smoothed:
    """Running averages of a step's figures, so that the bar does not jump."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def update(self, metrics: dict[str, float]) -> dict[str, float]:
        """Take in a step and return the averages."""
        for name, value in metrics.items():
            last = self._values.get(name, value)
            self._values[name] = _SMOOTHING * last + (1 - _SMOOTHING) * value
        return dict(self._values)


def post(board: ActorHandle, report: "StepReport", smooth: dict[str, float], config: "Config") -> None:
    """Write a step to the board, with the running averages of its figures."""
    left = (report.steps - report.step - 1) * config.train.batch_size / smooth["images_per_second"]
    figures = f"loss {smooth['loss']:.3f}  IoU {smooth['iou']:.3f}  {smooth['images_per_second']:.1f} img/s"
    board.post.remote(
        {"step": report.step + 1, "steps": report.steps, "figures": figures, "seconds_left": left}
    )


@contextmanager
def shown(name: str) -> Iterator[ActorHandle]:
    """Show what is posted to the board that this yields, until the block is left."""
    board: ActorHandle = ray.remote(num_cpus=0)(Board).remote()  # type: ignore[assignment]
    done = threading.Event()
    viewer = threading.Thread(target=_view, args=(name, board, done), daemon=True)
    viewer.start()
    try:
        yield board
    finally:
        done.set()
        viewer.join()
        ray.kill(board)


def _view(name: str, board: ActorHandle, done: threading.Event) -> None:
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None, figures="starting workers")
        waited, printed = 0.0, 0
        last = False
        status: dict[str, Any]
        notes: list[str]
        while not last:
            last = done.wait(_POLL_SECONDS)  # one more look after the end, for the last notes
            status, notes = ray.get(board.read.remote())
            for note in notes:
                console.print(f"{name}: {note}", highlight=False, soft_wrap=True)
            if not status:
                continue
            bar.update(task, completed=status["step"], total=status["steps"], figures=status["figures"])
            waited += _POLL_SECONDS
            due = waited >= _LINE_SECONDS or last
            if not console.is_terminal and due and status["step"] > printed:
                waited, printed = 0.0, status["step"]
                console.print(
                    f"{name}: step {status['step']}/{status['steps']}  {status['figures']}  "
                    f"{status['seconds_left']:.0f} s left",
                    highlight=False,
                    soft_wrap=True,
                )
