"""Pictures of what came of a sweep; what is darker is better, the best is orange."""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import MaxNLocator
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from pipelines.sweeping.plan import OBJECTIVES, Objective, Plan
from pipelines.sweeping.record import TrialRecord, pareto_set, rank
from pipelines.sweeping.space import LISTED, Settings, distributions, params_of

_BEST, _INK, _FAINT = "#e4572e", "#28323c", "#aab4be"
_COLORS = LinearSegmentedColormap.from_list("better", ["#d5dde6", "#7fa3c9", "#0b4f9e"])
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",  # text that can be searched, in the page's own font
    "svg.hashsalt": "sweep",
}
_FEWEST = 4  # trials of which importance means anything
_LONGEST = 10  # characters of a label of the first chart

Chart = Callable[[Axes, Plan, Sequence[TrialRecord]], None]


def parallel(axes: Axes, plan: Plan, trials: Sequence[TrialRecord]) -> None:
    """Draw a line for each trial, from setting to setting and to its figures."""
    objectives = plan.all_objectives()
    ranked = rank(trials, plan.primary)
    places = [_places(plan, name) for name in plan.space]
    ends = [_ends([_figure(each, plan, objective) for each in ranked]) for objective in objectives]
    for number, trial in reversed(list(enumerate(ranked))):
        heights = [place(trial.settings) for place in places]
        for objective, (low, high) in zip(objectives, ends, strict=True):
            share = (_figure(trial, plan, objective) - low) / (high - low)
            heights.append(1 - share if objective.mode == "min" else share)
        patch = PathPatch(_smooth(heights), fill=False, capstyle="round", **_look(number, len(ranked)))
        patch.set_gid(f"{trial.name}.parallel")
        axes.add_patch(patch)
    last = len(places) + len(objectives) - 1
    for place in range(last + 1):
        axes.axvline(place, color=_FAINT, linewidth=0.8, zorder=0)
    for place, name in enumerate(plan.space):
        _label_setting(axes, place, plan, name)
    for place, (objective, (low, high)) in enumerate(zip(objectives, ends, strict=True), len(places)):
        bottom, top = (high, low) if objective.mode == "min" else (low, high)
        for height, value in ((0, bottom), (0.5, (bottom + top) / 2), (1, top)):
            _tick(axes, place, height, f"{value:.3g}")
    names = [name.rpartition(".")[2] for name in plan.space] + [each.label for each in objectives]
    axes.set_xticks(range(last + 1), names)
    axes.tick_params(length=0, pad=8)
    axes.set(xlim=(-0.15, last + 0.35), ylim=(-0.05, 1.05), yticks=[])
    axes.spines[:].set_visible(False)


def importance(axes: Axes, plan: Plan, trials: Sequence[TrialRecord]) -> None:
    """Draw how much of the differences each setting explains, for each objective."""
    found = {each.label: importances(plan, trials, each) for each in plan.all_objectives()}
    known = {label: shares for label, shares in found.items() if shares}
    if not known:
        _say(axes, f"too few trials, or too alike:\n{_FEWEST} different ones tell of importance")
        return
    names = sorted(plan.space, key=lambda name: next(iter(known.values()))[name])
    height = 0.8 / len(known)
    for number, (label, shares) in enumerate(known.items()):
        places = [place - number * height for place in range(len(names))]
        color = ("#0b4f9e", "#e4a72e")[number % 2]
        values = [shares[name] for name in names]
        bars = axes.barh(places, values, height * 0.9, color=color, label=label)
        axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=3, fontsize=8)
    middle = (len(known) - 1) * height / 2
    axes.set_yticks(
        [place - middle for place in range(len(names))], [name.rpartition(".")[2] for name in names]
    )
    axes.set(xlim=(0, 1.15), xticks=[])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_xlabel(f"share of the variance ({' and '.join(known)})")
    if len(known) > 1:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def curves(axes: Axes, plan: Plan, trials: Sequence[TrialRecord]) -> None:
    """Draw each trial's first objective by epoch; a cross ends those that were stopped."""
    objective, ranked = plan.primary, rank(trials, plan.primary)
    for number, trial in reversed(list(enumerate(ranked))):
        look = _look(number, len(ranked))
        epochs = [each.epoch for each in trial.results]
        values = [objective.shown(each.metrics) for each in trial.results]
        (line,) = axes.plot(epochs, values, **look)
        line.set_gid(f"{trial.name}.curve")
        end = "x" if trial.state == "stopped" else "o"
        axes.plot(epochs[-1:], values[-1:], end, color=look["color"], markersize=5, zorder=look["zorder"])
    axes.set(xlabel="epoch", ylabel=objective.label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="#eef1f4")
    axes.spines[["top", "right"]].set_visible(False)


def pareto(axes: Axes, plan: Plan, trials: Sequence[TrialRecord]) -> None:
    """Draw the first objective against the second, or the time of a click; the Pareto set is joined."""
    pair = pareto_objectives(plan)
    ranked, front = rank(trials, plan.primary), pareto_set(trials, pair)

    def place(trial: TrialRecord) -> tuple[float, float]:
        return _figure(trial, plan, pair[1]), _figure(trial, plan, pair[0])

    for number, trial in enumerate(ranked):
        color = _look(number, len(ranked))["color"]
        (dot,) = axes.plot(*place(trial), "o", color=color, markersize=8 if trial in front else 5)
        dot.set_gid(f"{trial.name}.pareto")
    steps = sorted(place(trial) for trial in front)
    if steps:
        axes.step(*zip(*steps, strict=True), where="post", color=_INK, linewidth=0.9, zorder=0)
    shift = (5, -11) if pair[0].mode == "max" else (5, 5)
    for trial in front:
        axes.annotate(f"{trial.number}", place(trial), xytext=shift, textcoords="offset points", fontsize=8)
    axes.set(xlabel=pair[1].label, ylabel=pair[0].label)
    axes.grid(color="#eef1f4")
    axes.set_axisbelow(True)
    axes.margins(0.1)
    axes.spines[["top", "right"]].set_visible(False)


def pareto_objectives(plan: Plan) -> tuple[Objective, Objective]:
    """Return the two figures whose trade-off is shown."""
    second = plan.all_objectives()[1] if len(plan.objectives) > 1 else OBJECTIVES["ms_per_click"]
    return plan.primary, second


def importances(plan: Plan, trials: Sequence[TrialRecord], objective: Objective) -> dict[str, float] | None:
    """Return the share of an objective's variance that each setting explains (fANOVA, Hutter et al. 2014).

    Every trial counts with its best validation, also one that was stopped.

    Returns:
        A share for each setting, or None where trials are too few or too alike.
    """
    known = rank(trials, plan.primary)
    if len(known) < _FEWEST or len({_figure(each, plan, objective) for each in known}) < 2:
        return None
    study, drawn = optuna.create_study(), distributions(plan.space)
    for each in known:
        params = params_of(plan.space, each.settings)
        study.add_trial(
            create_trial(params=params, distributions=drawn, value=_figure(each, plan, objective))
        )
    try:
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except RuntimeError:  # no tree of the forest found a difference
        return None
    return {name: found.get(name, 0.0) for name in plan.space}


CHARTS: dict[str, tuple[Chart, tuple[float, float]]] = {
    "Parallel coordinates": (parallel, (12.0, 3.9)),
    "Importance": (importance, (4.0, 3.4)),
    "Learning curves": (curves, (4.0, 3.4)),
    "Pareto front": (pareto, (4.0, 3.4)),
}
"""Each chart by its title, and its size in inches."""


def as_svg(chart: Chart, size: tuple[float, float], plan: Plan, trials: Sequence[TrialRecord]) -> str:
    """Return a chart as an `<svg>` element."""
    written = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        chart(figure.subplots(), plan, trials)
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def as_png(plan: Plan, trials: Sequence[TrialRecord], title: str) -> bytes:
    """Return all charts on one picture."""
    (first, (wide, tall)), *others = CHARTS.values()
    with rc_context(_STYLE):
        height = tall + max(size[1] for _, size in others) + 0.4
        figure = Figure(figsize=(wide, height), dpi=120, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        cells = figure.add_gridspec(2, len(others), height_ratios=[tall, height - tall])
        first(figure.add_subplot(cells[0, :]), plan, trials)
        for place, ((name, (chart, _)), _other) in enumerate(
            zip(list(CHARTS.items())[1:], others, strict=True)
        ):
            axes = figure.add_subplot(cells[1, place])
            chart(axes, plan, trials)
            axes.set_title(name, fontsize=10)
        figure.suptitle(title, fontsize=11)
        written = io.BytesIO()
        canvas.print_png(written)
    return written.getvalue()


def _figure(trial: TrialRecord, plan: Plan, objective: Objective) -> float:
    return objective.shown(trial.best(plan.primary).metrics)


def _look(place: int, of: int) -> dict[str, Any]:
    """How the trial of a rank is drawn."""
    if place == 0:
        return {"color": _BEST, "linewidth": 2.4, "zorder": 1000}
    return {"color": _COLORS(1 - place / of), "linewidth": 1.2, "zorder": of - place}


def _places(plan: Plan, name: str) -> Callable[[Settings], float]:
    """Where on its axis a setting's value stands, 0 .. 1."""
    ((kind, values),) = plan.space[name].items()
    if kind in LISTED:
        order = list(values)
        return lambda settings: _of_choice(order.index(settings[name]), len(order))
    scale = math.log if kind == "loguniform" else float
    low, high = (scale(each) for each in values)
    return lambda settings: (scale(settings[name]) - low) / (high - low)


def _of_choice(number: int, of: int) -> float:
    return (number + 0.5) / of


def _label_setting(axes: Axes, place: int, plan: Plan, name: str) -> None:
    ((kind, values),) = plan.space[name].items()
    if kind in LISTED:
        for number, value in enumerate(values):
            text = f"{value:.3g}" if isinstance(value, float) else str(value)
            _tick(axes, place, _of_choice(number, len(values)), text[:_LONGEST])
        return
    low, high = values
    middle = math.sqrt(low * high) if kind == "loguniform" else (low + high) / 2
    for height, value in ((0, low), (0.5, middle), (1, high)):
        _tick(axes, place, height, f"{value:.2g}")


def _tick(axes: Axes, place: int, height: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.75}
    axes.text(place + 0.02, height, text, va="center", fontsize=8, bbox=box, zorder=2000)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _smooth(heights: Sequence[float]) -> Curve:
    """A curve through one point on each axis, level there."""
    points, codes = [(0.0, heights[0])], [Curve.MOVETO]
    for place, (one, other) in enumerate(itertools.pairwise(heights)):
        points += [(place + 0.5, one), (place + 0.5, other), (place + 1.0, other)]
        codes += [Curve.CURVE4] * 3
    return Curve(points, codes)


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=_FAINT, transform=axes.transAxes)
    axes.set_axis_off()
