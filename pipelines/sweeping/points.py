"""Settings that were trained several times, each time with another seed: their mean, and what it is worth."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from mst.errors import CheckpointError
from mst.evaluation.metrics import number_of_clicks
from mst.evaluation.report.evaluation import held
from mst.evaluation.statistics import Interval, bootstrap_interval
from mst.training.checkpoints import ValidatedObject, best, validated_objects
from pipelines.sweeping.plan import Plan
from pipelines.sweeping.record import TrialRecord, rank


class Point(NamedTuple):
    """The trials of one point of the space."""

    trials: tuple[TrialRecord, ...]
    """Those that have a validation, best first; at least one."""
    values: tuple[float, ...]
    """Of the first objective, in that order."""
    mean: float
    interval: Interval | None
    """Of the mean, over images; None for one training, or where objects were not kept."""


def points(plan: Plan, trials: Sequence[TrialRecord], folder: UPath) -> list[Point]:
    """Return the points of a sweep by their means, best first; those that lack a trial come last.

    Args:
        plan: of the sweep.
        trials: all that have begun, in their order: `plan.seeds` in a row are of one point.
        folder: of the sweep.
    """
    found = []
    for first in range(0, len(trials), plan.seeds):
        ranked = rank(trials[first : first + plan.seeds], plan.primary)
        if not ranked:
            continue
        values = [plan.primary.shown(each.best(plan.primary).metrics) for each in ranked]
        # Only several trainings are told with an interval, for which each one's checkpoint is read.
        interval = _interval(plan, ranked, folder) if plan.seeds > 1 else None
        found.append(Point(tuple(ranked), tuple(values), sum(values) / len(values), interval))
    sign = -1 if plan.primary.mode == "max" else 1
    return sorted(found, key=lambda each: (-len(each.trials), sign * each.mean))


def _interval(plan: Plan, trials: Sequence[TrialRecord], folder: UPath) -> Interval | None:
    """Of the mean over seeds, by drawing images: all seeds were clicked on the same objects."""
    try:
        objects = [validated_objects(best(folder / each.name).path) for each in trials]
    except CheckpointError:
        return None
    if len({tuple(each.name for each in one) for one in objects}) > 1:
        return None  # a trial was resumed by another number of objects
    return bootstrap_interval(
        np.mean([_figures(plan, each) for each in objects], axis=0), [each.image_id for each in objects[0]]
    )


def _figures(plan: Plan, objects: Sequence[ValidatedObject]) -> NDArray[np.float64]:
    """The first objective's figure of each object."""
    most, name = plan.config.train.val_clicks, plan.objectives[0]
    if name == "iou":
        clicks = range(1, most + 1)
        return np.array([np.mean([held(each.ious, click) for click in clicks]) for each in objects])
    target = int(name.removeprefix("noc")) / 100
    return np.array([number_of_clicks(each.ious, target, most) for each in objects], np.float64)
