"""The click protocol of the field: how many clicks until the mask is right (NoC, NoF).

Deterministic: each click is placed by `mst.clicks.next_click`, models are in evaluation mode. Every figure is
computed from the records of the objects.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mst.clicks import Click, next_click
from mst.data.annotations import Sample
from mst.data.images import RGB
from mst.metrics import iou, never_reached, number_of_clicks
from mst.predictor import Segment

TARGETS = (0.80, 0.85, 0.90, 0.95)

Open = Callable[[RGB], Segment]
"""Takes an image (H, W, 3) and returns what answers clicks on it; `Predictor.open` is one."""


@dataclass(frozen=True)
class ObjectRecord:
    """What happened on one object."""

    name: str
    area_share: float
    """Share of the image that the object covers."""
    clicks: tuple[Click, ...]
    ious: tuple[float, ...]
    """After each click."""
    seconds: tuple[float, ...]
    """For each click's mask; the choice of the click is not counted."""


@dataclass(frozen=True)
class Summary:
    """Means over objects."""

    objects: int
    max_clicks: int
    noc: dict[int, float]
    """Mean number of clicks by target IoU in percent; `max_clicks` for an object that never reaches it."""
    nof: dict[int, int]
    """Number of objects that never reach the target."""
    iou: tuple[float, ...]
    """Mean IoU after each click; an object that was finished keeps its last IoU."""
    seconds_per_click: float

    @property
    def mean_iou(self) -> float:
        """Mean of the IoU over all clicks."""
        return sum(self.iou) / len(self.iou)

    def metrics(self) -> dict[str, float]:
        """All figures by name, as they are logged."""
        return {
            **{f"noc{target}": value for target, value in self.noc.items()},
            **{f"nof{target}": float(value) for target, value in self.nof.items()},
            **{f"iou_at_{click}": value for click, value in enumerate(self.iou, 1)},
            "iou": self.mean_iou,
            "seconds_per_click": self.seconds_per_click,
            "objects": float(self.objects),
        }


def evaluate_object(open_image: Open, sample: Sample, max_clicks: int, target: float) -> ObjectRecord:
    """Click on one object until its mask reaches an IoU of `target`, at most `max_clicks` times.

    Args:
        open_image: the method under evaluation.
        sample: image, object and void.
        max_clicks: at least 1.
        target: IoU at which to stop.
    """
    segment = open_image(sample.image)
    mask = sample.mask & False
    clicks: list[Click] = []
    ious: list[float] = []
    seconds: list[float] = []
    while len(clicks) < max_clicks and (not ious or ious[-1] < target):
        click = next_click(mask, sample.mask, sample.void, clicks)
        if click is None:  # every wrong pixel has been clicked: more of the same would change nothing
            break
        clicks.append(click)
        start = time.perf_counter()
        mask = segment(clicks)
        seconds.append(time.perf_counter() - start)
        ious.append(iou(mask, sample.mask, sample.void))
    return ObjectRecord(sample.name, float(sample.mask.mean()), tuple(clicks), tuple(ious), tuple(seconds))


def evaluate(
    open_image: Open,
    samples: Iterable[Sample],
    max_clicks: int,
    targets: Sequence[float] = TARGETS,
    on_object: Callable[[ObjectRecord], None] | None = None,
) -> list[ObjectRecord]:
    """Run the protocol on every object, each until it reaches the highest target.

    Args:
        open_image: the method under evaluation.
        samples: the objects.
        max_clicks: for each object.
        targets: IoUs of interest, 0 .. 1.
        on_object: told of each object when it is done.
    """
    records = []
    for sample in samples:
        records.append(evaluate_object(open_image, sample, max_clicks, max(targets)))
        if on_object:
            on_object(records[-1])
    return records


def summarize(
    records: Sequence[ObjectRecord], max_clicks: int, targets: Sequence[float] = TARGETS
) -> Summary:
    """Compute the field's figures from the records of at least one object."""
    count = len(records)
    held = [[*each.ious, *[each.ious[-1]] * (max_clicks - len(each.ious))] for each in records]
    clicks = sum(len(each.seconds) for each in records)
    noc, nof = {}, {}
    for target in targets:
        percent = round(100 * target)
        noc[percent] = sum(number_of_clicks(each.ious, target, max_clicks) for each in records) / count
        nof[percent] = sum(never_reached(each.ious, target) for each in records)
    return Summary(
        objects=count,
        max_clicks=max_clicks,
        noc=noc,
        nof=nof,
        iou=tuple(sum(column) / count for column in zip(*held, strict=True)),
        seconds_per_click=sum(sum(each.seconds) for each in records) / clicks,
    )
