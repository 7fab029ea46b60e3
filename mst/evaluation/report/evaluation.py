"""One method on one data set, and every figure of it with its interval."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mst.errors import DataError
from mst.evaluation import TARGETS, ObjectRecord
from mst.evaluation.metrics import never_reached, number_of_clicks
from mst.evaluation.records import read_table
from mst.evaluation.statistics import Values, bootstrap_interval, bootstrap_intervals

RECORDS = "records.parquet"
SUBJECT, DATA_SET, SKIPPED = "subject", "data_set", "skipped"
"""Entries beside the records: names of method and data set, and what was left out, as a JSON list."""

_SHARES = ("nof", "at_max")  # measures of which the sum over the objects is told, not the mean
_LOOKED = 1.0  # seconds that a person looks at an image before the first click, in which it is encoded


class Measure(NamedTuple):
    """A figure and its 95% bootstrap interval over images."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Evaluation:
    """What one method did on the objects of one data set."""

    subject: str
    """Name of the method."""
    data_set: str
    records: Sequence[ObjectRecord]
    """At least one."""
    about: dict[str, str] = field(default_factory=dict)
    """What made them, as it is written beside them."""

    @property
    def max_clicks(self) -> int:
        """That an object was given at most."""
        return int(self.about["eval.max_clicks"])

    @property
    def targets(self) -> Sequence[float]:
        """IoUs of interest, 0 .. 1."""
        return tuple(json.loads(self.about["targets"])) if "targets" in self.about else TARGETS

    @property
    def images(self) -> list[str]:
        """The image of each object."""
        return [each.image_id for each in self.records]

    @property
    def corrects_masks(self) -> bool:
        """Whether the clicks began with a mask to correct."""
        return self.records[0].init_iou is not None

    @property
    def is_whole(self) -> bool:
        """Whether no objects of the set were passed over."""
        return self.about.get("objects") == self.about.get("objects_of_set")

    @property
    def skipped(self) -> list[str]:
        """Objects that have nothing to click on, by name and reason."""
        return list(json.loads(self.about.get(SKIPPED, "[]")))

    def noc(self, target: int) -> Values:
        """Clicks that each object needs to reach an IoU of `target` percent, (N,)."""
        needed = [number_of_clicks(each.ious, target / 100, self.max_clicks) for each in self.records]
        return np.asarray(needed, np.float64)

    def iou(self, click: int) -> Values:
        """Each object's IoU after `click` clicks, (N,); one that was finished before keeps its last."""
        return np.asarray([held(each.ious, click) for each in self.records])

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """All figures by name.

        `noc90`, `nof90` (objects that never reach it), `at_max90` (objects whose NoC is the most clicks: the
        other reading of a failure), `iou_at_1` and so on, `boundary_iou_at_1`, `iou` (mean over all clicks),
        `seconds_per_click` (SPC of the model) and `seconds_per_click_total` (SPC end to end). Where images
        are encoded before clicks: `seconds_per_click_encoding`, the part of SPC that encodings are, and
        `seconds_per_click_met`, SPC as a person meets it who looks at an image for a second before clicking.
        """
        columns = self._columns()
        names = list(columns)
        values = np.stack([columns[name] for name in names], 1)
        found = {
            name: Measure(float(mean), *interval)
            for name, mean, interval in zip(
                names, values.mean(0), bootstrap_intervals(values, self.images), strict=True
            )
        }
        count = len(self.records)
        for name in names:
            if name.startswith(_SHARES):
                found[name] = Measure(*(count * each for each in found[name]))
        return found | {name: self._per_click(seconds) for name, seconds in self._seconds().items()}

    @property
    def encodes(self) -> bool:
        """Whether images were encoded before clicks."""
        return any(each.seconds_encoding for each in self.records)

    def _seconds(self) -> dict[str, list[tuple[float, ...]]]:
        """The seconds of each object's clicks, by the name of the measure that is their mean."""
        found = {
            "seconds_per_click": [each.seconds_model for each in self.records],
            "seconds_per_click_total": [each.seconds_total for each in self.records],
        }
        if self.encodes:
            found["seconds_per_click_encoding"] = [each.seconds_encoding for each in self.records]
            found["seconds_per_click_met"] = [_met(each) for each in self.records]
        return found

    def _per_click(self, seconds: Sequence[Sequence[float]]) -> Measure:
        values = [second for each in seconds for second in each]
        images = [image for image, each in zip(self.images, seconds, strict=True) for _ in each]
        return Measure(float(np.mean(values)), *bootstrap_interval(values, images))

    def _columns(self) -> dict[str, Values]:
        """One number for each object, by the name of the measure that is their mean."""
        columns: dict[str, Values] = {}
        for target in self.targets:
            percent = round(100 * target)
            noc = self.noc(percent)
            never = [never_reached(each.ious, target) for each in self.records]
            columns |= {
                f"noc{percent}": noc,
                f"nof{percent}": np.asarray(never, np.float64),
                f"at_max{percent}": (noc == self.max_clicks).astype(np.float64),
            }
        clicks = range(1, self.max_clicks + 1)
        ious = {f"iou_at_{click}": self.iou(click) for click in clicks}
        boundary = {
            f"boundary_iou_at_{click}": np.asarray([held(each.boundary_ious, click) for each in self.records])
            for click in clicks
        }
        return {**columns, **ious, "iou": np.mean(list(ious.values()), 0), **boundary}


def _met(record: ObjectRecord) -> tuple[float, ...]:
    """What a person waits after each click who looked at the image for a while before the first."""
    first, *others = record.seconds_model
    return (first - min(record.seconds_opening, _LOOKED), *others)


def held(values: Sequence[float], click: int) -> float:
    """Return an object's value after `click` clicks, from 1; its last one where it was finished before."""
    return values[min(click, len(values)) - 1]


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read all evaluations under a folder, `DATA_SET/SUBJECT/records.parquet`.

    Returns:
        Those of a data set after each other, in the order in which they were written.

    Raises:
        DataError: a file is damaged, or evaluations of one data set are of different objects.
    """
    found: dict[str, list[Evaluation]] = {}
    for path in sorted(folder.glob(f"*/*/{RECORDS}"), key=lambda each: each.stat().st_mtime_ns):
        records, about = read_table(path)
        if missing := [name for name in (SUBJECT, DATA_SET) if name not in about]:
            raise DataError(
                f"{path}: no '{missing[0]}' beside the records; evaluate anew into another folder"
            )
        evaluation = Evaluation(about[SUBJECT], about[DATA_SET], records, about)
        others = found.setdefault(evaluation.data_set, [])
        if others and _objects(others[0]) != _objects(evaluation):
            raise DataError(f"{path}: other objects than in the other evaluations of {evaluation.data_set}")
        others.append(evaluation)
    return [each for others in found.values() for each in others]


def _objects(evaluation: Evaluation) -> list[str]:
    return [each.name for each in evaluation.records]
