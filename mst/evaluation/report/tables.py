"""Tables of a report, each a plain value that a page or a terminal can show."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from mst.evaluation.report import published
from mst.evaluation.report.evaluation import Evaluation, Measure
from mst.evaluation.report.published import Column, Figures
from mst.evaluation.statistics import Values, paired_comparison

NOTHING = "\N{EN DASH}"
_PART = "*"


class Cell(NamedTuple):
    """What stands in a table."""

    text: str
    interval: str = ""


class _Shown(NamedTuple):
    """How a measure is told."""

    measure: str
    title: str
    digits: int = 2
    factor: float = 1

    def cell(self, measures: Mapping[str, Measure]) -> Cell:
        """Tell it of one evaluation."""
        value, low, high = (f"{self.factor * each:.{self.digits}f}" for each in measures[self.measure])
        return Cell(value, f"[{low}, {high}]")


class Row(NamedTuple):
    """A line of a table."""

    name: str
    cells: tuple[Cell, ...]
    is_published: bool = False
    """Whether its figures are the paper's, not measured here."""


class Table(NamedTuple):
    """A table with its heading."""

    title: str
    columns: tuple[str, ...]
    """After that of the names."""
    rows: tuple[Row, ...]
    note: str = ""

    @property
    def has_ours(self) -> bool:
        """Whether a figure in it was measured here."""
        return any(cell.text != NOTHING for row in self.rows if not row.is_published for cell in row.cells)


def main_table(evaluations: Sequence[Evaluation], only: Collection[str] = ()) -> Table:
    """Compare methods on one data set by the field's figures, with intervals.

    Args:
        evaluations: of the same objects.
        only: names of measures (`Evaluation.measures`) to tell; all of the table's if empty.
    """
    first = evaluations[0]
    targets = [round(100 * target) for target in first.targets]
    failed = [target for target in targets if target >= 85][:2]
    shown = [
        *(_Shown(f"noc{each}", f"NoC@{each}") for each in targets),
        *(_Shown(f"nof{each}", f"NoF@{each}", 0) for each in failed),
        *(_Shown(f"at_max{each}", f"NoC@{each} = {first.max_clicks}", 0) for each in failed[-1:]),
        *(_Shown(f"iou_at_{click}", f"IoU@{click}", 3) for click in (1, 3, 5) if click <= first.max_clicks),
        _Shown("boundary_iou_at_1", "boundary IoU@1", 3),
        _Shown("seconds_per_click", "ms a click", 0, 1000),
        _Shown("seconds_per_click_total", "end to end", 0, 1000),
    ]
    if all(each.encodes for each in evaluations):
        shown += [
            _Shown("seconds_per_click_encoding", "of it encoding", 0, 1000),
            _Shown("seconds_per_click_met", "image known for 1 s", 0, 1000),
        ]
    columns = [each for each in shown if not only or each.measure in only]
    rows = [
        Row(each.subject, tuple(column.cell(each.measures) for column in columns)) for each in evaluations
    ]
    start = "from masks to correct" if first.corrects_masks else "from nothing"
    return Table(
        f"{first.data_set}: {len(first.records)} objects, at most {first.max_clicks} clicks",
        tuple(column.title for column in columns),
        tuple(rows),
        f"Clicks start {start}. In brackets: 95% bootstrap intervals, for which the {len(set(first.images))} "
        f"images are drawn, each with all its objects. NoF counts objects that never reach the target, "
        f"'NoC = {first.max_clicks}' also those that do at the very last click.",
    )


def comparison_table(evaluations: Sequence[Evaluation]) -> Table | None:
    """Compare the first method with each of the others on the same objects.

    Args:
        evaluations: of the same objects.

    Returns:
        The table; None where there are no others.
    """
    first, *others = evaluations
    if not others:
        return None
    measures: dict[str, tuple[Callable[[Evaluation], Values], int]] = {  # and digits
        "NoC@85": (lambda each: each.noc(85), 2),
        "NoC@90": (lambda each: each.noc(90), 2),
        "IoU@1": (lambda each: each.iou(1), 3),
    }
    rows = []
    for other in others:
        cells = []
        for measure, digits in measures.values():
            found = paired_comparison(measure(first), measure(other), first.images)
            cells += [Cell(*found.told(digits)), Cell(_p(found.p))]
        rows.append(Row(other.subject, tuple(cells)))
    return Table(
        f"{first.data_set}: {first.subject} less each other method, on the same objects",
        tuple(title for name in measures for title in (name, "p")),
        tuple(rows),
        "Mean differences with 95% bootstrap intervals; p by permutation of signs (two-sided); both over "
        f"{len(set(first.images))} images. Fewer clicks "
        "are better, so a negative difference of NoC favours the first.",
    )


def paper_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Return the paper's tables I to IV, this run's rows beside the published ones."""
    subjects = list(dict.fromkeys(each.subject for each in evaluations))
    return [
        _beside(published.NOC, published.NOC_COLUMNS, published.NOC_FIGURES, subjects, evaluations),
        _cost(evaluations),
        _beside(
            published.CORRECTION,
            published.CORRECTION_COLUMNS,
            published.CORRECTION_FIGURES,
            subjects,
            evaluations,
        ),
        _beside(published.REMOTE, published.REMOTE_COLUMNS, published.REMOTE_FIGURES, subjects, evaluations),
    ]


def _beside(
    title: str,
    columns: Sequence[Column],
    figures: Figures,
    subjects: Sequence[str],
    evaluations: Sequence[Evaluation],
) -> Table:
    rows = []
    for subject in subjects:
        cells = [_measured(column, subject, evaluations) for column in columns]
        if any(cell.text != NOTHING for cell in cells):
            rows.append(Row(subject, tuple(cells)))
    names = tuple(_title(column, columns) for column in columns)
    digits = [_digits(column.measure) for column in columns]
    note = (
        f"{_PART} Of a part of the set."
        if any(_PART in each.text for row in rows for each in row.cells)
        else ""
    )
    return Table(title, names, (*rows, *_published(figures, digits)), note)


def _title(column: Column, columns: Sequence[Column]) -> str:
    measure = f"{column.measure[:3].title()[:2]}{column.measure[2].upper()}@{column.measure[3:]}"
    if not any(each.corrects_masks for each in columns):
        return f"{column.data_set} {measure}"
    return f"{measure} {'from a mask' if column.corrects_masks else 'from nothing'}"


def _measured(column: Column, subject: str, evaluations: Sequence[Evaluation]) -> Cell:
    """One figure of one method."""
    for each in evaluations:
        is_set = published.NAMES.get(each.about.get("format", "")) == column.data_set
        is_meant = is_set and each.subject == subject and each.corrects_masks == column.corrects_masks
        if is_meant and column.measure in each.measures:
            cell = _Shown(column.measure, "", _digits(column.measure)).cell(each.measures)
            return cell if each.is_whole else cell._replace(text=cell.text + _PART)
    return Cell(NOTHING)


def _digits(measure: str) -> int:
    return 0 if measure.startswith("nof") else 2


def _cost(evaluations: Sequence[Evaluation]) -> Table:
    rows = []
    machines = set()
    for each in {each.subject: each for each in evaluations if "flops" in each.about}.values():
        machines.add(each.about["device"])
        rows.append(
            Row(
                f"{each.subject}, {each.about['image_size']} px",
                (
                    Cell(f"{int(each.about['parameters']) / 1e6:.2f}"),
                    Cell(f"{int(each.about['flops']) / 2e9:.2f}"),
                    _Shown("seconds_per_click", "", 0, 1000).cell(each.measures),
                ),
            )
        )
    return Table(
        published.COST,
        published.COST_COLUMNS,
        (*rows, *_published(published.COST_FIGURES, (2, 2, 0))),
        "As in the paper, an operation is a multiplication with its addition. Published times: RTX 3090"
        + (f"; times of this run: {', '.join(sorted(machines))}." if machines else "."),
    )


def _published(figures: Figures, digits: Sequence[int]) -> list[Row]:
    def cells(values: Sequence[float | None]) -> tuple[Cell, ...]:
        pairs = zip(values, digits, strict=True)
        return tuple(Cell(NOTHING if value is None else f"{value:.{each}f}") for value, each in pairs)

    return [Row(name, cells(values), is_published=True) for name, values in figures.items()]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
