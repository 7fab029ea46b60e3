"""A sweep on one page: pictures and all trials, in a file that needs no network."""

import html
from collections.abc import Sequence

from upath import UPath

from pipelines.sweeping.budget import spent
from pipelines.sweeping.charts import CHARTS, as_png, as_svg, pareto_objectives
from pipelines.sweeping.plan import Plan
from pipelines.sweeping.points import Point
from pipelines.sweeping.record import TrialRecord, pareto_set, rank
from pipelines.sweeping.table import point_cells

_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #28323c;
  margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1rem; margin: 0 0 .3rem }
.facts { color: #5c6873; margin: .3rem 0 1.2rem }
.charts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1.5rem 1rem }
.charts section:first-child { grid-column: 1 / -1 } svg { width: 100%; height: auto }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem; font-variant-numeric: tabular-nums }
.trials { overflow-x: auto }
th, td { white-space: nowrap; text-align: right; padding: .25rem .6rem; border-bottom: 1px solid #eef1f4 }
th { color: #5c6873; font-weight: 600 } th:first-child, td:first-child { text-align: left }
tbody tr:hover { background: #fdf3ef } .best { font-weight: 600 }
.front td:first-child::after { content: " ◆" }
.failed, .stopped { color: #8a95a0 } tr.best { color: #c23f18 }
.failed td:last-child { text-align: left; color: #b3261e }
svg .off { opacity: .12 }
@media (max-width: 50rem) { .charts { grid-template-columns: 1fr } }
"""

_ENDED = {"running": "unfinished"}  # what the state means once the sweep is over

_SCRIPT = """
const marked = [...document.querySelectorAll('svg g[id^="trial_"]')];
for (const row of document.querySelectorAll('tbody tr')) {
  row.onmouseenter = () => marked.forEach(g => g.classList.toggle('off', !g.id.startsWith(row.id + '.')));
  row.onmouseleave = () => marked.forEach(g => g.classList.remove('off'));
}
"""


def write_page(
    plan: Plan, trials: Sequence[TrialRecord], folder: UPath, ranked: Sequence[Point] = ()
) -> list[UPath]:
    """Write `sweep.html` and `sweep.png` into a sweep's folder; return both.

    Args:
        plan: of the sweep.
        trials: all of it; at least one has a validation.
        folder: of the sweep.
        ranked: its points, best first; shown where each was trained by several seeds.
    """
    page, picture = folder / "sweep.html", folder / "sweep.png"
    page.write_text(_page(plan, trials, folder.name, ranked))
    picture.write_bytes(as_png(plan, trials, f"{folder.name}: {_facts(plan, trials)}"))
    return [page, picture]


def _page(plan: Plan, trials: Sequence[TrialRecord], name: str, ranked: Sequence[Point]) -> str:
    charts = "\n".join(
        f"<section><h2>{title}</h2>{as_svg(chart, size, plan, trials)}</section>"
        for title, (chart, size) in CHARTS.items()
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{html.escape(name)}</title><style>{_CSS}</style>
<h1>{html.escape(name)}</h1><p class="facts">{html.escape(_facts(plan, trials))}</p>
<div class="charts">{charts}</div>
{_points(plan, ranked) if plan.seeds > 1 else ""}
{_table(plan, trials)}
<p class="facts">◆ no other trial is better in {" or ".join(each.label for each in pareto_objectives(plan))}
without being worse in the other. Each trial counts with its best validation.
Point at a row to find its lines.</p>
<script>{_SCRIPT}</script></html>
"""


def _points(plan: Plan, ranked: Sequence[Point]) -> str:
    """A table of points, whose means over seeds are what was sought."""
    titles = [f"mean {plan.primary.label}", "95 %, over images", "each seed", *plan.space]
    head = "".join(f"<th>{html.escape(name.rpartition('.')[2])}</th>" for name in titles)
    rows = []
    for point in ranked:
        settings = point.trials[0].settings
        cells = [*point_cells(point), *(_text(settings[name]) for name in plan.space)]
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{"best" if point is ranked[0] else ""}">{row}</tr>')
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _facts(plan: Plan, trials: Sequence[TrialRecord]) -> str:
    cost = spent(plan, trials)
    states = [each.state for each in trials]
    counted = [
        f"{states.count(state)} {_ENDED.get(state, state)}"
        for state in ("finished", "stopped", "failed", "running")
        if state in states
    ]
    gpus = f", {cost.gpu_hours:.1f} GPU hours" if cost.gpu_hours else ""
    leader = rank(trials, plan.primary)[0]
    best = plan.primary.shown(leader.best(plan.primary).metrics)
    return (
        f"best {plan.primary.label} {best:.3f} by trial {leader.number}; {len(trials)} trials "
        f"({', '.join(counted)}) by {plan.search} and {plan.scheduler}; {cost.samples:,} samples{gpus}"
    )


def _table(plan: Plan, trials: Sequence[TrialRecord]) -> str:
    objectives = list(dict.fromkeys([*plan.all_objectives(), *pareto_objectives(plan)]))
    ranked, front = rank(trials, plan.primary), pareto_set(trials, pareto_objectives(plan))
    columns = ["trial", "epochs", *(each.label for each in objectives), *plan.space, ""]
    head = "".join(
        f'<th title="{html.escape(name)}">{html.escape(name.rpartition(".")[2])}</th>' for name in columns
    )
    rows = []
    for trial in [*ranked, *(each for each in trials if each not in ranked)]:
        figures = [
            f"{each.shown(trial.best(plan.primary).metrics):.3f}" if trial.results else ""
            for each in objectives
        ]
        note = trial.failure or "; ".join(
            f"took over {each.other} of epoch {each.epoch}" for each in trial.takeovers
        )
        cells = [
            f"{trial.number} {_ENDED.get(trial.state, trial.state)}",
            f"{trial.epochs}/{plan.epochs}",
            *figures,
            *(_text(trial.settings[name]) for name in plan.space),
            note,
        ]
        kinds = [trial.state, *["best"] * (trial is ranked[0]), *["front"] * (trial in front)]
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr id="{trial.name}" class="{" ".join(kinds)}">{row}</tr>')
    return (
        f"<div class=trials><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
