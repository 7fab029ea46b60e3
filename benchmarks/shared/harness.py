"""What all benchmarks share: fair timing, a row for each figure, a table and a JSON file."""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mst.evaluation.statistics import Comparison

OUT = Path(__file__).resolve().parent.parent.parent / "out" / "bench"


@dataclass(frozen=True)
class Row:
    """One figure, and the goal it is held against."""

    name: str
    value: float
    unit: str
    goal: str | None = None
    """As in '<= 1.15' or '>= 1.6'; None where there is none."""
    holds: bool | None = None


def row(
    name: str, value: float, unit: str = "x", *, at_most: float | None = None, at_least: float | None = None
) -> Row:
    """Make a row; `at_most` or `at_least` is its goal, where it has one."""
    if at_most is not None:
        return Row(name, value, unit, f"<= {at_most:g}", value <= at_most)
    if at_least is not None:
        return Row(name, value, unit, f">= {at_least:g}", value >= at_least)
    return Row(name, value, unit)


def difference(name: str, found: Comparison, unit: str) -> Iterator[Row]:
    """Rows of a mean difference and its interval."""
    yield row(name, found.mean_difference, unit)
    yield row(f"{name}_low", found.low, unit)
    yield row(f"{name}_high", found.high, unit)


def seconds_side_by_side(
    subjects: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Time several functions in turn, so that a noisy moment hits all of them.

    Args:
        subjects: what to call, by name.
        rounds: calls of each that count.
        warmup: calls of each before them.

    Returns:
        The median of each one's seconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(warmup + rounds):
        for name, call in subjects.items():
            start = time.perf_counter()
            call()
            if number >= warmup:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def report(name: str, rows: Iterable[Row]) -> None:
    """Print each row as it comes, then all as a table, and write them to `out/bench/NAME.json`."""
    console, table, done = Console(highlight=False), Table(title=name, box=SIMPLE_HEAD), []
    for column in ("", "value", "unit", "goal", "holds"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for each in rows:
        console.print(f"{each.name} {each.value:.4g} {each.unit}", style="dim")
        holds = {None: "", True: "yes", False: "[red]no"}[each.holds]
        table.add_row(each.name, f"{each.value:.4g}", each.unit, each.goal or "", holds)
        done.append(asdict(each))
    console.print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{name}.json").write_text(json.dumps(done, indent=2))
