"""The click protocol on several objects at once: their crops share forwards, each object at its own click.

Records are those of one object at a time, but for rounding: a forward's last digits depend on what else is in
the batch, and a pixel whose probability is that near the threshold may change sides. Such pixels are counted.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import filterfalse, islice
from typing import NamedTuple

import numpy as np

from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.annotations import Sample
from mst.encodings import Encodings
from mst.evaluation import TARGETS, ObjectRecord, ObjectUnderTest, clickable, naming
from mst.model import MST
from mst.predictor import (
    Crop,
    Prediction,
    Probabilities,
    forward,
    forwards_of_click,
    next_crop,
    paste,
    start_from,
)

ROUNDING = 1e-5
"""Probabilities this near the threshold may fall on its other side in another batch."""

_log = logging.getLogger(__name__)


class BatchedRecords(NamedTuple):
    """What happened on all objects."""

    records: list[ObjectRecord]
    """In the order of the samples."""
    close_pixels: list[int]
    """Of each object, over all its masks, pixels within `ROUNDING` of the threshold; where there is none, its
    record is that of one object at a time. All 0 in batches of one."""


class _Rules(NamedTuple):
    """What is the same for all objects."""

    size: int
    """S, the side of the network's input."""
    config: EvalConfig
    batch_size: int
    encodes: bool
    """Whether images are encoded before clicks."""


class _Seat:
    """A place in the batch: one object, and its prediction so far."""

    def __init__(self, number: int, test: ObjectUnderTest, rules: _Rules) -> None:
        sample = test.sample
        self.number, self.test, self._rules = number, test, rules
        self.close_pixels = 0
        self._previous = None if sample.init_mask is None else start_from(sample.init_mask)
        self._clicks: Sequence[Click] = test.next_clicks() or ()
        self._last: Crop | None = None
        self._is_opened = False
        self._begin()

    def is_finished(self) -> bool:
        """Whether there is nothing more to ask."""
        return not self._clicks

    def crop(self) -> Crop:
        """Prepare the next forward."""
        start = time.perf_counter()
        image, size, config = self.test.sample.image, self._rules.size, self._rules.config
        self._last = next_crop(image, self._clicks, self._previous, size, config, self._last)
        self._seconds += time.perf_counter() - start
        return self._last

    def _begin(self) -> None:
        self._forwards_left = forwards_of_click(self._previous, self._rules.config)
        self._seconds = self._encoding = 0.0

    def take(self, crop: Crop, probabilities: Probabilities, seconds: float, encoding: float) -> None:
        """Take what a forward returned; where it is the click's last, go on to the next.

        Args:
            crop: what it read.
            probabilities: what it returned.
            seconds: that it took.
            encoding: of these, what the encoding of the crop took.
        """
        if not self._is_opened:
            self.test.took_to_open(encoding)
            self._is_opened = True
        self._encoding += encoding
        start = time.perf_counter()
        with naming(self.test.sample):
            self._previous = paste(crop.box, probabilities, self._clicks, self.test.sample.mask.shape)
        self._forwards_left -= 1
        self._seconds += time.perf_counter() - start + seconds
        if not self._forwards_left:
            self._answer(self._previous)

    def _answer(self, prediction: Prediction) -> None:
        threshold = self._rules.config.threshold
        encoding = self._encoding if self._rules.encodes else None
        self.test.take(prediction.mask(threshold), self._seconds, encoding)
        if self._rules.batch_size > 1:
            self.close_pixels += int(np.count_nonzero(np.abs(prediction.seen - threshold) < ROUNDING))
        self._clicks = self.test.next_clicks() or ()
        self._begin()


def evaluate_batched(
    model: MST,
    samples: Iterable[Sample],
    config: EvalConfig,
    max_clicks: int,
    targets: Sequence[float] = TARGETS,
    batch_size: int = 8,
    on_object: Callable[[ObjectRecord], None] | None = None,
    on_skipped: Callable[[str], None] | None = None,
    *,
    flip: bool = False,
) -> BatchedRecords:
    """Run the protocol on every object, `batch_size` at a time, each until it reaches the highest target.

    A sample is read when there is room for it: no more than `batch_size` are in memory.

    Args:
        model: put into evaluation mode here.
        samples: the objects.
        config: threshold, zoom and cascade.
        max_clicks: for each object.
        targets: IoUs of interest, 0 .. 1.
        batch_size: objects that share a forward.
        on_object: told of each object when it is done, which may be before an earlier one.
        on_skipped: as in `mst.evaluation.evaluate`.
        flip: whether probabilities are the mean of the image's and its mirror's.

    Raises:
        NothingToClickError, PredictionError: as `mst.evaluation.evaluate`.
    """
    network = model.eval().config
    rules = _Rules(network.image_size, config, batch_size, network.click_entry > 0)
    waiting = enumerate(clickable(samples, on_skipped))
    done: dict[int, tuple[ObjectRecord, int]] = {}
    seats: list[_Seat] = []
    encodings = Encodings(model)
    while True:
        for number, sample in islice(waiting, batch_size - len(seats)):
            seats.append(_Seat(number, ObjectUnderTest(sample, max_clicks, max(targets)), rules))
        if not seats:
            break
        _step(model, seats, encodings, flip=flip)
        for seat in filter(_Seat.is_finished, seats):
            done[seat.number] = seat.test.record(), seat.close_pixels
            if on_object:
                on_object(done[seat.number][0])
        seats = list(filterfalse(_Seat.is_finished, seats))
    ordered = [done[number] for number in sorted(done)]
    close = [pixels for _, pixels in ordered]
    if any(close):
        _log.info(
            "%d of %d objects have pixels whose side of the threshold rounding may have decided, %d in all",
            sum(map(bool, close)),
            len(close),
            sum(close),
        )
    return BatchedRecords([record for record, _ in ordered], close)


def _step(model: MST, seats: Sequence[_Seat], encodings: Encodings, *, flip: bool) -> None:
    """One forward for all seats whose crops are as large."""
    by_side: defaultdict[int, list[tuple[_Seat, Crop]]] = defaultdict(list)
    for seat in seats:
        crop = seat.crop()
        by_side[crop.side].append((seat, crop))
    for pairs in by_side.values():
        start, encoded = time.perf_counter(), encodings.seconds
        answers = forward(model, [crop for _, crop in pairs], flip=flip, encodings=encodings)
        share = (time.perf_counter() - start) / len(pairs)
        encoding = (encodings.seconds - encoded) / len(pairs)
        for (seat, crop), probabilities in zip(pairs, answers, strict=True):
            seat.take(crop, probabilities, share, encoding)
