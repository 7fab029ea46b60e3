"""Figures of a report, drawn from the records: SVG, which prints well."""

import io
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mst.data.annotations import ImageRecord
from mst.data.pixels.images import RGB
from mst.evaluation.report.evaluation import Evaluation
from mst.evaluation.statistics import bootstrap_intervals, noc_by_scale

_COLOURS = ("#0b6e4f", "#d1495b", "#2a78c8", "#e09f3e", "#6c4ab6", "#3a3a3a", "#8d99ae", "#a44a3f")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
_MARKS = "osD^vPX*"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "mst",
}
_WIDTH, _HEIGHT = 8.6, 4.4  # inches; a column of text


def iou_by_clicks(evaluations: Sequence[Evaluation]) -> str:
    """Draw the mean IoU after each click of every method on a data set, the paper's Fig. 2."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        clicks = range(1, evaluations[0].max_clicks + 1)
        for each, (colour, dashes, mark) in zip(evaluations, _looks(), strict=False):
            ious = np.stack([each.iou(click) for click in clicks], 1)
            low, high = np.array(bootstrap_intervals(ious, each.images)).T
            axes.plot(clicks, ious.mean(0), color=colour, ls=dashes, marker=mark, ms=4, label=each.subject)
            axes.fill_between(clicks, low, high, color=colour, alpha=0.12, lw=0)
        for target in (0.85, 0.9):
            axes.axhline(target, color="#999999", lw=0.7, zorder=0)
        axes.set(xlabel="clicks", ylabel="mean IoU", xticks=clicks, ylim=(None, 1))
        _legend(axes)
        return _svg(figure)


def noc_by_area(evaluations: Sequence[Evaluation], target: int = 90) -> str:
    """Draw the clicks that objects of each size need, the paper's Fig. 7: means and 95% intervals of bins."""
    with rc_context(_STYLE):
        figure, axes = _figure()
        for number, (each, (colour, dashes, mark)) in enumerate(zip(evaluations, _looks(), strict=False)):
            shares, noc = np.array([record.area_share for record in each.records]), each.noc(target)
            if number == 0:
                axes.scatter(shares, noc, s=9, color=colour, alpha=0.3, lw=0)
            bins = noc_by_scale(shares, noc, images=each.images)
            places = np.array([(part.smallest + part.largest) / 2 for part in bins])
            means = np.array([part.noc for part in bins])
            errors = np.abs(np.array([(part.low, part.high) for part in bins]).T - means)
            moved = places * (1 + 0.03 * (number - len(evaluations) / 2))  # beside each other, not on top
            axes.errorbar(
                moved, means, errors, color=colour, ls=dashes, marker=mark, ms=4, lw=1.2, label=each.subject
            )
        most = evaluations[0].max_clicks
        axes.set(
            xscale="log",
            xlabel="share of the image that the object covers",
            ylabel=f"NoC@{target}",
            ylim=(0.5, most + 0.5),
        )
        ticks = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        _legend(axes)
        return _svg(figure)


def evaluated_sizes(evaluation: Evaluation) -> str:
    """Draw how large a data set's objects are, the paper's Fig. 6."""
    extents = [each.extent for each in evaluation.records]
    areas = [each.area_share for each in evaluation.records]
    with rc_context(_STYLE):
        return _svg(size_figure(np.column_stack([np.array(extents), areas])))


def object_sizes(records: Iterable[ImageRecord]) -> NDArray[np.float64]:
    """Return each object's share of its image's height, width and area, (N, 3)."""
    sizes = [
        (
            (each.box[2] - each.box[0]) / record.height,
            (each.box[3] - each.box[1]) / record.width,
            each.area / (record.height * record.width),
        )
        for record in records
        for each in record.objects
        if not each.is_stuff
    ]
    return np.asarray(sizes, np.float64).reshape(-1, 3)


def draw_sizes(sizes: NDArray[np.float64], title: str) -> RGB:
    """Draw `size_figure` as pixels, (H, W, 3), under a title and the number of objects."""
    figure = size_figure(sizes)
    figure.suptitle(f"{title}: {len(sizes):,} objects")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def size_figure(sizes: NDArray[np.float64]) -> Figure:
    """Draw height against width, as the paper's Fig. 6, and a histogram of the area.

    Args:
        sizes: (N, 3), each object's share of its image's height, width and area.
    """
    figure = Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    plane, bars = figure.subplots(1, 2)
    density = plane.hexbin(
        *sizes[:, 1::-1].T, gridsize=20, extent=(0, 1, 0, 1), mincnt=1, cmap="Blues", vmin=0
    )
    figure.colorbar(density, ax=plane, label="objects")
    plane.set(
        xlabel="width / image width", ylabel="height / image height", xlim=(0, 1), ylim=(0, 1), aspect=1
    )
    bars.hist(np.sqrt(sizes[:, 2].clip(0, 1)), bins=20, range=(0, 1), color=_COLOURS[2])
    bars.set(xlabel="square root of the share of the image", ylabel="objects", xlim=(0, 1))
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _looks() -> "cycle[tuple[str, Any, str]]":
    """Colour, dashes and mark of each method: told apart in black and white too."""
    return cycle(zip(_COLOURS, _DASHES, _MARKS, strict=True))


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})  # type: ignore[no-untyped-call]
    text = out.getvalue()
    return text[text.index("<svg") :]
