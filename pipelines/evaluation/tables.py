"""Show evaluations on a terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as ShownTable

from mst.evaluation.report import Evaluation, Table, comparison_table, main_table

_BRIEF = ("noc85", "noc90", "nof90", "iou_at_1", "iou_at_5", "seconds_per_click")  # what fits a terminal


def show(table: Table) -> None:
    """Print a table."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(table.title)
    shown = ShownTable(box=SIMPLE_HEAD)
    shown.add_column("", no_wrap=True)
    for column in table.columns:
        shown.add_column(column, justify="right")
    for row in table.rows:
        shown.add_row(row.name, *("\n".join(filter(None, cell)) for cell in row.cells))
    console.print(shown)


def show_evaluations(evaluations: Sequence[Evaluation]) -> None:
    """Print the tables of one data set, what was left out, and what rounding may have decided."""
    show(main_table(evaluations, _BRIEF))
    if compared := comparison_table(evaluations):
        show(compared)
    for name in evaluations[0].skipped:
        print(f"left out: {name}")
    for each in evaluations:
        if pixels := int(each.about["close_pixels"]):
            print(f"{each.subject}: {pixels} pixels are so near the threshold that another batch may differ")
