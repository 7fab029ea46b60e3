"""From the records of objects to figures that can be trusted: intervals, paired tests, groups of size.

A set of tens or hundreds of objects leaves a mean of clicks uncertain by more than many a published
difference. Objects of one image are alike, so images are drawn and flipped, each with all its objects.
Everything here depends on its arguments alone: resampling is seeded.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from mst.evaluation.metrics import never_reached, number_of_clicks

Values = NDArray[np.float64]
"""One number for each object, (N,)."""

Images = Sequence[Hashable]
"""The image of each object, (N,)."""

RESAMPLES = 10_000
SCALE_EDGES = tuple((tenth / 10) ** 2 for tenth in range(11))
"""Shares of the image's area: of objects whose side is 0, 0.1 .. 1 of the image's."""

_CHUNK = 2_000_000  # numbers drawn at a time: bounds memory, and stays near the processor


class Interval(NamedTuple):
    """Where a mean lies, as far as the sample tells."""

    low: float
    high: float


class Comparison(NamedTuple):
    """What two methods' figures on the same objects say of their difference."""

    mean_difference: float
    """First less second."""
    low: float
    """Of the bootstrap interval of the mean difference."""
    high: float
    p: float
    """Probability of a mean difference at least this large, of either sign, were the methods alike."""

    def told(self, digits: int) -> tuple[str, str]:
        """Return the mean difference and its interval as texts, signed."""
        mean, low, high = (f"{each:+.{digits}f}" for each in self[:3])
        return mean, f"[{low}, {high}]"


class ScaleBin(NamedTuple):
    """The objects of one group of size."""

    smallest: float
    """Share of the image's area, inclusive."""
    largest: float
    """Exclusive, but for the last bin."""
    objects: int
    noc: float
    """Mean over these objects."""
    low: float
    """Of the bootstrap interval of the mean."""
    high: float


class Failures(NamedTuple):
    """The two readings of a failure, in objects."""

    never_reached: int
    """NoF: no click reached the target."""
    at_max_clicks: int
    """NoC equals the most clicks (the code of RITM): counts a success at the very last click, too."""


def bootstrap_interval(
    values: ArrayLike,
    images: Images | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the bootstrap interval of a mean over objects, whose images are drawn (a cluster bootstrap).

    Args:
        values: (N,), at least one, finite.
        images: see `Images`; None where each object has an image of its own.
        level: probability that the interval is made for, between 0 and 1.
        resamples: number of means that are drawn, each of as many images as there are, with replacement.
        seed: of the draws.

    Returns:
        Percentiles of the drawn means, moved outwards where images are few: by as much as Student's t is
        wider than a normal distribution ("expanded percentiles", Hesterberg 2015, section 5.2). Of one image
        nothing can be said but its own mean.

    Raises:
        ValueError: no values, values that are not finite, another number of images, or a level out of range.
    """
    return bootstrap_intervals(_checked(values)[:, None], images, level, resamples, seed)[0]


def bootstrap_intervals(
    columns: ArrayLike,
    images: Images | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return the interval of each of several means over the same objects, drawn for all at once.

    Args:
        columns: (N, M), M figures for each of at least one object, finite.
        images: as for `bootstrap_interval`; so are the others.
        level: see above.
        resamples: see above.
        seed: see above.

    Raises:
        ValueError: as `bootstrap_interval`.
    """
    values = np.asarray(columns, np.float64)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"expected rows of finite numbers, at least one, not shape {values.shape}")
    sums, objects = _by_image(values, _owners(images, len(values)))
    drawn = _drawn_means(sums, objects, resamples, np.random.default_rng(seed))
    return _ends(drawn, level, len(sums))


def paired_comparison(
    one: ArrayLike,
    other: ArrayLike,
    images: Images | None = None,
    sets: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two methods on the same objects.

    The test permutes which method the figures of an image belong to, image by image, and so flips the signs
    of the differences. It is exact while there are no more than `resamples` ways to flip; above that, ways
    are drawn, and the observed one counts as one of them, so that p is valid and never 0 (Phipson and Smyth
    2010).

    Args:
        one: (N,), a figure for each object, such as its NoC.
        other: (N,), the other method's, of the same objects in the same order.
        images: see `Images`; None where each object has an image of its own.
        sets: (N,), the data set of each object. The difference is the mean of the sets' mean differences, so
            that a large set weighs no more than a small one; images are drawn set by set. None for one set.
        level: of the interval.
        resamples: of the interval, and the most sign flips.
        seed: of both.

    Raises:
        ValueError: the lengths differ, or as `bootstrap_interval` says.
    """
    first, second = _checked(one), _checked(other)
    if len(first) != len(second):
        raise ValueError(
            "a paired comparison needs both figures of each object, "
            f"but there are {len(first)} and {len(second)}"
        )
    difference, owners = first - second, _owners(images, len(first))
    rng = np.random.default_rng(seed)
    parts = _places(sets or [None] * len(difference))
    means, drawn, weighed = [], np.zeros((resamples, 1)), []
    for places in parts:
        inside = difference[places]
        sums, objects = _by_image(inside[:, None], [owners[place] for place in places])
        means.append(inside.mean())
        drawn += _drawn_means(sums, objects, resamples, rng) / len(parts)
        weighed.append(sums[:, 0] / len(inside))
    flipped = np.concatenate(weighed)
    (interval,) = _ends(drawn, level, len(flipped) - len(parts) + 1)
    return Comparison(float(np.mean(means)), *interval, _sign_flip_p(flipped, resamples, seed))


def noc_by_scale(
    area_shares: ArrayLike,
    nocs: ArrayLike,
    edges: Sequence[float] = SCALE_EDGES,
    images: Images | None = None,
    seed: int = 0,
) -> list[ScaleBin]:
    """Return the paper's NoC-Scale: the clicks that objects of each size need.

    From MST section IV-C and Fig. 7: size is the ratio of the object's area to the image's (the abscissa),
    and the ordinate its NoC@90. The paper names no bins; means over bins are ours, and so are the default
    edges, which follow the steps in which the text on Fig. 6 tells sizes apart (tenths of the image's side).

    Args:
        area_shares: (N,), 0 .. 1.
        nocs: (N,), number of clicks of the same objects.
        edges: of the bins, increasing.
        images: see `Images`; None where each object has an image of its own.
        seed: of the intervals.

    Returns:
        The bins that hold objects, from small to large.

    Raises:
        ValueError: lengths differ, edges do not increase, or an object lies in no bin.
    """
    shares, clicks, bounds = _checked(area_shares), _checked(nocs), _checked(edges)
    if len(shares) != len(clicks):
        raise ValueError(f"there are {len(shares)} area shares and {len(clicks)} numbers of clicks")
    if len(bounds) < 2 or (np.diff(bounds) <= 0).any():
        raise ValueError(f"edges {list(edges)} do not increase")
    if shares.min() < bounds[0] or shares.max() > bounds[-1]:
        raise ValueError(
            f"area shares of {shares.min()} .. {shares.max()} exceed the edges {bounds[0]} .. {bounds[-1]}"
        )
    places = np.minimum(np.searchsorted(bounds, shares, side="right"), len(bounds) - 1) - 1
    owners, bins = _owners(images, len(shares)), []
    for place in np.unique(places):
        of_bin = np.flatnonzero(places == place).tolist()
        inside = clicks[of_bin]
        interval = bootstrap_interval(inside, [owners[each] for each in of_bin], seed=seed)
        smallest, largest = float(bounds[place]), float(bounds[place + 1])
        bins.append(ScaleBin(smallest, largest, len(inside), float(inside.mean()), *interval))
    return bins


def count_failures(ious: Sequence[Sequence[float]], target: float, max_clicks: int) -> Failures:
    """Count the objects on which a method failed, by both readings.

    Args:
        ious: of each object, after each of its clicks.
        target: IoU, 0 .. 1.
        max_clicks: that an object was given at most.
    """
    return Failures(
        never_reached=sum(never_reached(each, target) for each in ious),
        at_max_clicks=sum(number_of_clicks(each, target, max_clicks) == max_clicks for each in ious),
    )


def _checked(values: ArrayLike) -> Values:
    checked = np.asarray(values, np.float64)
    if checked.ndim != 1 or not len(checked) or not np.isfinite(checked).all():
        raise ValueError(f"expected a list of at least one finite number, not shape {checked.shape}")
    return checked


def _places(labels: Sequence[Hashable]) -> list[list[int]]:
    """The places of each label, labels in the order in which they are met first."""
    found: dict[Hashable, list[int]] = {}
    for place, label in enumerate(labels):
        found.setdefault(label, []).append(place)
    return list(found.values())


def _owners(images: Images | None, count: int) -> Images:
    """The image of each of so many objects."""
    if images is None:
        return range(count)
    if len(images) != count:
        raise ValueError(f"there are {count} objects and {len(images)} images of them")
    return images


def _by_image(values: NDArray[np.float64], images: Images) -> tuple[NDArray[np.float64], Values]:
    """Sums of columns (N, M) over the objects of each image, (G, M), and how many objects it has, (G,)."""
    owned = _places(images)
    sums = np.stack([values[places].sum(0) for places in owned])
    return sums, np.array([len(places) for places in owned], np.float64)


def _drawn_means(
    sums: NDArray[np.float64], objects: Values, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means over the objects of images that are drawn with replacement, (resamples, M)."""
    count = len(sums)
    means = []
    for rows in _chunks(resamples, count):
        drawn = rng.integers(count, size=(rows, count), dtype=np.int32)
        drawn += count * np.arange(rows, dtype=np.int32)[:, None]  # of each row's own numbers
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means.append(times @ sums / (times @ objects)[:, None])
    return np.concatenate(means)


def _ends(means: NDArray[np.float64], level: float, count: int) -> list[Interval]:
    """The intervals of drawn means (R, M) of so many images."""
    tail = _tail(level, count)
    bounds = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(float(low), float(high)) for low, high in bounds.T]


def _tail(level: float, count: int) -> float:
    """The share of drawn means beyond each end of an interval, of so many images."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    beyond = (1 - level) / 2
    if count < 2:
        return beyond
    wider = np.sqrt(count / (count - 1)) * special.stdtrit(count - 1, beyond)
    return float(special.ndtr(wider))


def _chunks(rows: int, columns: int) -> Iterator[int]:
    """Cut a table of random numbers into bounded parts; yields the rows of each."""
    most = max(1, _CHUNK // columns)
    yield from (min(most, rows - start) for start in range(0, rows, most))


def _sign_flip_p(difference: Values, resamples: int, seed: int) -> float:
    difference = difference[difference != 0]  # their signs change nothing
    count = len(difference)
    total = abs(difference.sum())
    total -= 1e-9 * np.abs(difference).sum()  # sums of the same numbers in another order are equal
    if 2 ** min(count, 64) <= resamples:
        ways = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float((_flipped_sums(ways, difference) >= total).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _chunks(resamples, count):
        packed = rng.integers(256, size=(rows, -(-count // 8)), dtype=np.uint8)
        extreme += int((_flipped_sums(np.unpackbits(packed, 1, count), difference) >= total).sum())
    return (extreme + 1) / (resamples + 1)


def _flipped_sums(ways: NDArray[np.integer], difference: Values) -> Values:
    """Absolute sums of the differences; where a way (R, N) holds 1, the sign is kept, else turned."""
    sums: Values = np.abs(2 * (ways.astype(np.float64) @ difference) - difference.sum())
    return sums
