"""A sweep that a person can follow: a live table in a terminal, a line for each validation elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipelines.sweeping.plan import Objective, Plan
from pipelines.sweeping.points import Point
from pipelines.sweeping.record import TrialRecord, rank
from pipelines.sweeping.space import Settings

_BARS = "▁▂▃▄▅▆▇█"
_WIDEST = 24  # characters of a curve
_FILE_WIDTH = 140
_ROWS = 20  # trials of the live table; the best and those that run
_STYLES = {"running": "cyan", "finished": "green", "stopped": "dim", "failed": "red"}


def console() -> Console:
    """The terminal; or, where there is none, a file with room for a table."""
    found = Console()
    return found if found.is_terminal else Console(width=_FILE_WIDTH)


class SweepView:
    """Shows the trials of a sweep; without a terminal, as lines.

    Args:
        plan: of the sweep.
        console: to write to.
        concurrent: trials at a time, for the time that is left.
    """

    def __init__(self, plan: Plan, console: Console, concurrent: int) -> None:
        self._plan, self._console, self._concurrent = plan, console, concurrent
        self._live: Live | None = None
        self._start = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep a table on the terminal as long as the block runs."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=2) as self._live:
            yield
        self._live = None

    def show(
        self, trials: Sequence[TrialRecord], *, validated: int | None = None, failed: int | None = None
    ) -> None:
        """Show the trials.

        Args:
            trials: all of the sweep.
            validated: number of the one that just was.
            failed: number of the one that just did.
        """
        if self._live:
            self._live.update(self._picture(trials))
        elif validated is not None:
            self.note(self._line(trials, trials[validated]))
        elif failed is not None:
            self.note(_failure(trials[failed]))

    def note(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _picture(self, trials: Sequence[TrialRecord]) -> RenderableType:
        return Group(self._summary(trials), trials_table(self._plan, _chosen(trials, self._plan), trials))

    def _summary(self, trials: Sequence[TrialRecord]) -> Text:
        ended = sum(each.state != "running" for each in trials)
        parts = [
            f"{ended}/{self._plan.runs} trials",
            f"{_clock(time.monotonic() - self._start)} so far",
        ]
        left = seconds_left(self._plan, trials, self._concurrent)
        if left is not None:
            parts.append(f"at most {_clock(left)} left")
        return Text("   ".join(parts))

    def _line(self, trials: Sequence[TrialRecord], trial: TrialRecord) -> str:
        primary = self._plan.primary
        value = primary.shown(trial.results[-1].metrics)
        leader = rank(trials, primary)[0]
        best = f"best {primary.shown(leader.best(primary).metrics):.3f} ({leader.name})"
        left = seconds_left(self._plan, trials, self._concurrent)
        rest = f"  at most {_clock(left)} left" if left is not None else ""
        epoch = f"epoch {trial.epochs}/{self._plan.epochs}"
        return f"{trial.name}: {epoch}  {primary.label} {value:.3f}  {short(trial.settings)}  {best}{rest}"


def trials_table(plan: Plan, trials: Sequence[TrialRecord], ranked_among: Sequence[TrialRecord]) -> Table:
    """Return a table of trials.

    Args:
        plan: of the sweep.
        trials: to show, in their order.
        ranked_among: all trials, of which the best is marked.
    """
    objectives = plan.all_objectives()
    leaders = rank(ranked_among, plan.primary)[:1]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("trial", no_wrap=True)
    for name in plan.space:
        table.add_column(name.rpartition(".")[2], justify="right", overflow="fold")
    table.add_column("epoch", justify="right", no_wrap=True)
    for each in objectives:
        table.add_column(each.label, justify="right", no_wrap=True)
    table.add_column(f"{plan.primary.label} by epoch", overflow="fold")
    for trial in trials:
        figures = [_figure(trial, plan.primary, each) for each in objectives]
        last = sparkline(trial, plan.primary) if not trial.failure else Text(trial.failure, "red")
        style = "bold green" if trial in leaders else _STYLES[trial.state]
        row = [*(_text(trial.settings.get(name)) for name in plan.space), f"{trial.epochs}/{plan.epochs}"]
        table.add_row(f"{trial.number:03d} {trial.state}", *row, *figures, last, style=style)
    return table


def points_table(plan: Plan, points: Sequence[Point]) -> Table:
    """Return a table of points: the mean over the seeds, its interval over images, and each seed's figure."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in plan.space:
        table.add_column(name.rpartition(".")[2], justify="right", overflow="fold")
    for title in (f"mean {plan.primary.label}", "95 %", "seeds"):
        table.add_column(title, no_wrap=True)
    for point in points:
        settings = (_text(point.trials[0].settings.get(name)) for name in plan.space)
        style = "bold green" if point is points[0] else ""
        table.add_row(*settings, *point_cells(point), style=style)
    return table


def point_cells(point: Point) -> tuple[str, str, str]:
    """Return a point's mean, interval and values as text."""
    interval = point.interval and f"[{point.interval.low:.3f}, {point.interval.high:.3f}]"
    return f"{point.mean:.3f}", interval or "", "  ".join(f"{each:.3f}" for each in point.values)


def sparkline(trial: TrialRecord, objective: Objective) -> str:
    """Draw a trial's curve in characters: higher is better."""
    values = [each.metrics[objective.metric] for each in trial.results]
    if objective.mode == "min":
        values = [-each for each in values]
    if len(values) > _WIDEST:
        values = [values[place * len(values) // _WIDEST] for place in range(_WIDEST)]
    if not values:
        return ""
    low, extent = min(values), max(values) - min(values)
    if not extent:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((each - low) / extent * (len(_BARS) - 1))] for each in values)


def seconds_left(plan: Plan, trials: Sequence[TrialRecord], concurrent: int) -> float | None:
    """Return how long the sweep takes at most, were no trial stopped; None before the first validation."""
    results = [each for trial in trials for each in trial.results]
    if not results:
        return None
    each_validation = sum(each.seconds for each in results) / len(results)
    per_epoch = each_validation / plan.config.train.validate_every
    epochs = sum(plan.epochs - each.epochs for each in trials if each.state == "running")
    epochs += plan.epochs * max(0, plan.runs - len(trials))
    return per_epoch * epochs / max(1, concurrent)


def short(settings: Settings) -> str:
    """Return settings in a few words."""
    return " ".join(f"{name.rpartition('.')[2]}={_text(value)}" for name, value in settings.items())


def _chosen(trials: Sequence[TrialRecord], plan: Plan) -> list[TrialRecord]:
    """What fits on a screen: those that run, and the best of the others, in order of rank."""
    ranked = rank(trials, plan.primary)
    others = [each for each in trials if each not in ranked]
    running = [each for each in trials if each.state == "running"]
    room = max(0, _ROWS - len(running))
    kept = [*running, *[each for each in [*ranked, *others] if each.state != "running"][:room]]
    return [each for each in [*ranked, *others] if each in kept]


def _figure(trial: TrialRecord, primary: Objective, objective: Objective) -> str:
    return f"{objective.shown(trial.best(primary).metrics):.3f}" if trial.results else ""


def _failure(trial: TrialRecord) -> str:
    return f"{trial.name}: failed: {trial.failure}  {short(trial.settings)}"


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
