"""The click protocol of the field: how many clicks until the mask is right (NoC, NoF).

Deterministic: each click is placed by `mst.robot.next_click`, models are in evaluation mode. Every figure is
computed from the records of the objects.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mst.clicks import Click, Mask
from mst.data.annotations import Sample
from mst.data.pixels.encode import encode_rle
from mst.errors import NothingToClickError, PredictionError
from mst.evaluation.metrics import iou, near_contour, never_reached, number_of_clicks
from mst.predictor import Segment
from mst.robot import next_click

TARGETS = (0.80, 0.85, 0.90, 0.95)

Open = Callable[..., Segment]
"""Takes an image (H, W, 3), for mask correction the initial mask (H, W) too, and returns what answers clicks
on it; `Predictor.open` is one. A method that cannot start from a mask need not take one."""


@dataclass(frozen=True, kw_only=True)
class ObjectRecord:
    """What happened on one object."""

    name: str
    image_id: str
    """The same for all objects of an image."""
    height: int
    """Of the image, in pixels."""
    width: int
    area_share: float
    """Share of the image that the object covers."""
    extent: tuple[float, float]
    """Height and width of the object's box, as shares of the image's."""
    size_class: str = ""
    """Group of sizes that the data set counts the object to; empty for none."""
    init_iou: float | None = None
    """IoU of the mask that the clicks correct; None where they start from nothing."""
    clicks: tuple[Click, ...]
    ious: tuple[float, ...]
    """After each click."""
    boundary_ious: tuple[float, ...]
    """After each click (`mst.evaluation.metrics.boundary_iou`)."""
    masks: tuple[bytes, ...]
    """After each click (`mst.data.pixels.encode.decode_rle`)."""
    seconds_model: tuple[float, ...]
    """Until each click's mask is there; of a forward that several objects share, this one's part."""
    seconds_total: tuple[float, ...]
    """The same, with the choice of the click and the comparison of the mask."""
    seconds_encoding: tuple[float, ...] = ()
    """Of `seconds_model`, what encodings took; empty for a method that encodes nothing before the clicks."""
    seconds_opening: float = 0.0
    """Of the first click's, what the encoding of the whole image took, which needs no click."""


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
    """SPC of the model alone."""
    seconds_per_click_total: float
    """SPC end to end: with the choice of the clicks and the comparison of the masks."""

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
            "seconds_per_click_total": self.seconds_per_click_total,
            "objects": float(self.objects),
        }


class ObjectUnderTest:
    """The protocol on one object, whatever answers its clicks.

    `next_clicks` are answered with `take`, again and again, until there are none; then `record` says what
    happened.

    Args:
        sample: image, object and void.
        max_clicks: at least 1.
        target: IoU at which to stop.
    """

    def __init__(self, sample: Sample, max_clicks: int, target: float) -> None:
        self.sample = sample
        self._max_clicks, self._target = max_clicks, target
        self._mask = sample.mask & False if sample.init_mask is None else sample.init_mask
        self._clicks: list[Click] = []
        self._ious: list[float] = []
        self._boundary_ious: list[float] = []
        self._contour = near_contour(sample.mask, sample.void)
        self._masks: list[bytes] = []
        self._seconds_model: list[float] = []
        self._seconds_total: list[float] = []
        self._seconds_encoding: list[float] = []
        self._seconds_opening = 0.0
        self._seconds_choosing = 0.0

    def next_clicks(self) -> tuple[Click, ...] | None:
        """Place the next click and return all so far; None where the object is finished."""
        start = time.perf_counter()
        if len(self._ious) == self._max_clicks or (self._ious and self._ious[-1] >= self._target):
            return None
        click = next_click(self._mask, self.sample.mask, self.sample.void, self._clicks)
        if click is None:  # every wrong pixel has been clicked: more of the same would change nothing
            return None
        self._clicks.append(click)
        self._seconds_choosing = time.perf_counter() - start
        return tuple(self._clicks)

    def took_to_open(self, seconds: float) -> None:
        """Take the seconds that the encoding of the whole image took."""
        self._seconds_opening = seconds

    def take(self, mask: Mask, seconds_model: float, seconds_encoding: float | None = None) -> None:
        """Take the mask (H, W) that answers the clicks, its seconds, and what encodings were of these."""
        start = time.perf_counter()
        self._mask, sample = mask, self.sample
        self._ious.append(iou(mask, sample.mask, sample.void))
        around = self._seconds_choosing + time.perf_counter() - start
        self._boundary_ious.append(iou(near_contour(mask, sample.void), self._contour))
        self._masks.append(encode_rle(mask))
        self._seconds_model.append(seconds_model)
        self._seconds_total.append(seconds_model + around)
        if seconds_encoding is not None:
            self._seconds_encoding.append(seconds_encoding)

    def record(self) -> ObjectRecord:
        """Return what happened until now."""
        sample, init_mask = self.sample, self.sample.init_mask
        height, width = sample.mask.shape
        return ObjectRecord(
            name=sample.name,
            image_id=sample.image_id,
            height=height,
            width=width,
            area_share=float(sample.mask.mean()),
            extent=(_reach(sample.mask, 1) / height, _reach(sample.mask, 0) / width),
            size_class=sample.size_class,
            init_iou=None if init_mask is None else iou(init_mask, sample.mask, sample.void),
            clicks=tuple(self._clicks),
            ious=tuple(self._ious),
            boundary_ious=tuple(self._boundary_ious),
            masks=tuple(self._masks),
            seconds_model=tuple(self._seconds_model),
            seconds_total=tuple(self._seconds_total),
            seconds_encoding=tuple(self._seconds_encoding),
            seconds_opening=self._seconds_opening,
        )


def _reach(mask: Mask, axis: int) -> int:
    """From the first row or column that has pixels of the mask to the last; `axis` is that of the others."""
    places = np.flatnonzero(mask.any(axis))
    return int(places[-1] - places[0] + 1)


def evaluate_object(open_image: Open, sample: Sample, max_clicks: int, target: float) -> ObjectRecord:
    """Click on one object until its mask reaches an IoU of `target`, at most `max_clicks` times.

    Args:
        open_image: the method under evaluation.
        sample: image, object and void.
        max_clicks: at least 1.
        target: IoU at which to stop.

    Raises:
        PredictionError: the method's answer is no number.
    """
    init = () if sample.init_mask is None else (sample.init_mask,)
    segment = open_image(sample.image, *init)
    test = ObjectUnderTest(sample, max_clicks, target)
    while clicks := test.next_clicks():
        start = time.perf_counter()
        with naming(sample):
            mask = segment(clicks)
        test.take(mask, time.perf_counter() - start)
    return test.record()


def evaluate(
    open_image: Open,
    samples: Iterable[Sample],
    max_clicks: int,
    targets: Sequence[float] = TARGETS,
    on_object: Callable[[ObjectRecord], None] | None = None,
    on_skipped: Callable[[str], None] | None = None,
) -> list[ObjectRecord]:
    """Run the protocol on every object, each until it reaches the highest target.

    Args:
        open_image: the method under evaluation.
        samples: the objects.
        max_clicks: for each object.
        targets: IoUs of interest, 0 .. 1.
        on_object: told of each object when it is done.
        on_skipped: told of each object that has nothing to click on, by name and reason; it has no record.

    Raises:
        NothingToClickError: there is such an object, and nobody who is told.
        PredictionError: the method's answer is no number.
    """
    records = []
    for sample in clickable(samples, on_skipped):
        records.append(evaluate_object(open_image, sample, max_clicks, max(targets)))
        if on_object:
            on_object(records[-1])
    return records


def clickable(samples: Iterable[Sample], on_skipped: Callable[[str], None] | None = None) -> Iterator[Sample]:
    """Pass on the objects that have something to click on, each when it is asked for.

    Args:
        samples: whose iterator goes on after an error, as that of a `SampleSet`.
        on_skipped: told of each of the others, by name and reason.

    Raises:
        NothingToClickError: there is one of the others, and nobody who is told.
    """
    reading = iter(samples)
    while True:
        try:
            sample = next(reading)
        except StopIteration:
            return
        except NothingToClickError as error:
            if on_skipped is None:
                raise
            on_skipped(str(error))
        else:
            yield sample


@contextmanager
def naming(sample: Sample) -> Iterator[None]:
    """Name the object whose prediction fails in the block."""
    try:
        yield
    except PredictionError as error:
        raise PredictionError(f"{sample.name}: {error}") from None


def summarize(
    records: Sequence[ObjectRecord], max_clicks: int, targets: Sequence[float] = TARGETS
) -> Summary:
    """Compute the field's figures from the records of at least one object."""
    count = len(records)
    held = [[*each.ious, *[each.ious[-1]] * (max_clicks - len(each.ious))] for each in records]
    clicks = sum(len(each.clicks) for each in records)
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
        seconds_per_click=sum(sum(each.seconds_model) for each in records) / clicks,
        seconds_per_click_total=sum(sum(each.seconds_total) for each in records) / clicks,
    )
