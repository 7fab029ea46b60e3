"""Whether a challenger takes the champion's place: a function of what both did on the same objects."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mst.errors import ConfigError
from mst.evaluation import ObjectRecord
from mst.evaluation.metrics import number_of_clicks
from mst.evaluation.statistics import RESAMPLES, Comparison, paired_comparison

Records = Mapping[str, Sequence[ObjectRecord]]
"""What a model did on each data set, by its name."""

Figures = Callable[[Sequence[ObjectRecord]], Sequence[float]]
"""One number for each object."""

_TARGET = 0.9
_BEYOND = 100  # drawn means beyond the ends of an interval, at the least
_GAIN, _FLOOR = "gain", "floor"


class Rules(BaseModel):
    """What a challenger has to show; clicks are means of NoC@90."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    no_worse_by: Annotated[float, Field(ge=0)] = 0.05
    """Clicks that the interval of the difference may reach above zero, to count as no worse."""
    faster_by: Annotated[float, Field(ge=0)] = 0.10
    """Share of the champion's time for a click that one which is no worse has to save."""
    most_lost: Annotated[float, Field(ge=0)] = 0.25
    """Clicks that it may need more on any one data set, where chance explains them."""
    slower_by: Annotated[float, Field(ge=0)] = 0.25
    """Share of the champion's time for a click that it may take longer, where `max_ms` sets no budget."""
    max_ms: Annotated[float, Field(gt=0)] | None = None
    """The budget: most milliseconds for a click."""


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add an option for each rule to a parser."""
    group = parser.add_argument_group("rules")
    for name, setting in Rules.model_fields.items():
        text = f"{setting.description} (default {setting.default})"
        flag = f"--{name.replace('_', '-')}"
        group.add_argument(flag, dest=name, type=float, default=setting.default, metavar="X", help=text)


def rules_of(arguments: argparse.Namespace) -> Rules:
    """Return the rules that a command line asks for.

    Raises:
        ConfigError: a figure is out of its range.
    """
    try:
        return Rules(**{name: getattr(arguments, name) for name in Rules.model_fields})
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{flag}: {first['msg']}, not {first['input']}") from None


class Reason(NamedTuple):
    """What one rule says."""

    rule: str
    holds: bool
    finding: str


@dataclass(frozen=True)
class Decision:
    """What all rules say."""

    reasons: tuple[Reason, ...]

    @property
    def is_promoted(self) -> bool:
        """Whether every rule holds."""
        return all(each.holds for each in self.reasons)

    def why(self) -> str:
        """Return the findings that decide in one line: what it gains, or what speaks against it."""
        against = [each for each in self.reasons if not each.holds]
        told = against or [each for each in self.reasons if each.rule in (_GAIN, _FLOOR)]
        return "; ".join(f"{each.rule}: {each.finding}" for each in told)


def decide(
    challenger: Records,
    champion: Records | None,
    max_clicks: int,
    rules: Rules,
    level: float = 0.95,
    *,
    timed: tuple[Records, Records] | None = None,
    floor: Mapping[str, Records] | None = None,
) -> Decision:
    """Compare a challenger with the champion, or, where there is none, with what needs no training.

    It is promoted if its NoC@90 is lower by more than chance explains (the interval of the paired difference
    lies below zero), or no worse and a click clearly faster; if it loses on no data set; and if its time for
    a click is within the budget. Data sets weigh alike, and images are what chance draws
    (`mst.evaluation.statistics.paired_comparison`). The first champion needs fewer clicks than each method of
    the floor, beyond chance.

    Args:
        challenger: its records.
        champion: the champion's, of the same objects in the same order; None where there is no champion.
        max_clicks: that each object was given at most.
        rules: see `Rules`.
        level: of the intervals (`pipelines.promotion.looks.level_of`).
        timed: records of the challenger and of the champion whose times were taken by turns; None for the
            times of the others.
        floor: what methods do on the same objects that the first champion has to be better than, by name;
            None where they were not evaluated, which it does not pass.
    """
    checks = [_figures("challenger", challenger)]
    if champion is not None:
        checks += [_figures("champion", champion), _same_objects(challenger, champion)]
    if not all(each.holds for each in checks):
        return Decision(tuple(checks))  # there is nothing that could be compared
    if champion is None:
        budget = [] if rules.max_ms is None else [_latency(challenger, rules.max_ms)]
        return Decision((*checks, *_passes(challenger, floor, max_clicks, level), *budget))
    times = timed or (challenger, champion)
    losses = [
        _loss(name, {name: challenger[name]}, {name: champion[name]}, max_clicks, rules, level)
        for name in challenger
    ]
    budget_ms = rules.max_ms or (1 + rules.slower_by) * ms_per_click(_all(times[1]))
    gain = _gain(challenger, champion, times, max_clicks, rules, level)
    return Decision((*checks, gain, *losses, _latency(times[0], budget_ms)))


def nocs(records: Sequence[ObjectRecord], target: float, max_clicks: int) -> list[int]:
    """Return the number of clicks that each object needs to reach an IoU of `target`."""
    return [number_of_clicks(each.ious, target, max_clicks) for each in records]


def ms_per_click(records: Sequence[ObjectRecord]) -> float:
    """Return the model's milliseconds for a click, over all clicks (SPC)."""
    seconds = sum(sum(each.seconds_model) for each in records)
    return 1000 * seconds / sum(len(each.clicks) for each in records)


def _figures(name: str, records: Records) -> Reason:
    """Whether there is something to compare: a NaN would count as never reached, and the other would win."""
    wrong = [] if records else ["there are none"]
    for data, each in records.items():
        if not each:
            wrong.append(f"there are none of {data}")
        if broken := sum(map(_is_broken, each)):
            wrong.append(f"of {broken} objects of {data} they are no numbers")
        if each and len(_images(each)) == 1:
            wrong.append(f"all objects of {data} are of one image, which tells nothing of others")
    objects, images = (sum(len(what(each)) for each in records.values()) for what in (list, _images))
    found = f"{objects} objects of {images} images"
    return Reason(f"figures of the {name}", not wrong, "; ".join(wrong) or found)


def _images(records: Sequence[ObjectRecord]) -> set[str]:
    return {each.image_id for each in records}


def _is_broken(record: ObjectRecord) -> bool:
    figures = (*record.ious, *record.seconds_model)
    return not record.ious or not all(map(math.isfinite, figures))


def _same_objects(challenger: Records, champion: Records) -> Reason:
    wrong = [f"the challenger was not evaluated on {name}" for name in champion if name not in challenger]
    wrong += [f"the champion was not evaluated on {name}" for name in challenger if name not in champion]
    for name in challenger.keys() & champion.keys():
        ours, theirs = ([_identity(each) for each in records[name]] for records in (challenger, champion))
        if ours != theirs:
            wrong.append(f"{name} is not the same: {len(ours)} and {len(theirs)} objects, or others")
    return Reason("same objects", not wrong, "; ".join(wrong) or ", ".join(challenger))


def _identity(record: ObjectRecord) -> tuple[str, str, int, int, float]:
    return record.name, record.image_id, record.height, record.width, record.area_share


def _passes(
    challenger: Records, floor: Mapping[str, Records] | None, max_clicks: int, level: float
) -> list[Reason]:
    """Whether it is better than each method of the floor."""
    if not floor:
        return [Reason(_FLOOR, False, "there is no champion, and no peer was evaluated in its place")]
    reasons = []
    for name, peer in floor.items():
        found = _compared(challenger, peer, _nocs(max_clicks), level)
        finding = f"NoC@90 {_difference(found, 'clicks', 2)} beside {name}"
        reasons.append(Reason(_FLOOR, found.high < 0, finding))
    return reasons


def _gain(
    challenger: Records,
    champion: Records,
    times: tuple[Records, Records],
    max_clicks: int,
    rules: Rules,
    level: float,
) -> Reason:
    clicks = _compared(challenger, champion, _nocs(max_clicks), level)
    time = _compared(*times, _ms, level)
    wanted = -rules.faster_by * float(np.mean([np.mean(_ms(each)) for each in times[1].values()]))
    is_better, is_no_worse, is_faster = clicks.high < 0, clicks.high <= rules.no_worse_by, time.high < wanted
    said = f"NoC@90 {_difference(clicks, 'clicks', 2)}"
    if len(challenger) > 1:
        pooled = _compared(challenger, champion, _nocs(max_clicks), level, weigh_alike=False)
        said += f", over all objects {_difference(pooled, 'clicks', 2)}"
    if is_better:
        return Reason(_GAIN, True, f"{said}: better")
    speed = f"{_difference(time, 'ms a click', 1)}, where {wanted:+.1f} count as faster"
    quality = "no worse" if is_no_worse else f"perhaps worse (more than {rules.no_worse_by:+.2f})"
    return Reason(_GAIN, is_no_worse and is_faster, f"{said}: not better, {quality}; {speed}")


def _loss(
    name: str, challenger: Records, champion: Records, max_clicks: int, rules: Rules, level: float
) -> Reason:
    found, most = _compared(challenger, champion, _nocs(max_clicks), level), rules.most_lost
    finding = f"NoC@90 {_difference(found, 'clicks', 2)}, at most {most:+.2f} and explained by chance"
    return Reason(f"no loss on {name}", found.mean_difference <= most and found.low <= 0, finding)


def _latency(challenger: Records, budget: float) -> Reason:
    found = ms_per_click(_all(challenger))
    return Reason("latency", found <= budget, f"{found:.1f} ms a click, budget {budget:.1f}")


def _compared(
    challenger: Records, champion: Records, figures: Figures, level: float, *, weigh_alike: bool = True
) -> Comparison:
    """The difference of figures over the same objects; data sets weigh alike, or each object does."""
    names = sorted(challenger)
    ours, theirs = (
        [value for name in names for value in figures(each[name])] for each in (challenger, champion)
    )
    images = [f"{name}/{each.image_id}" for name in names for each in challenger[name]]
    sets = [name for name in names for _ in challenger[name]] if weigh_alike else None
    resamples = max(RESAMPLES, round(_BEYOND / (1 - level)))
    return paired_comparison(ours, theirs, images, sets, level, resamples)


def _nocs(max_clicks: int) -> Figures:
    return lambda records: nocs(records, _TARGET, max_clicks)


def _ms(records: Sequence[ObjectRecord]) -> list[float]:
    """Each object's mean time for a click."""
    return [1000 * sum(each.seconds_model) / len(each.seconds_model) for each in records]


def _difference(found: Comparison, unit: str, digits: int) -> str:
    mean, interval = found.told(digits)
    return f"{mean} {unit} {interval}"


def _all(records: Records) -> list[ObjectRecord]:
    return [record for name in sorted(records) for record in records[name]]
