"""How often a model that is no better takes the champion's place by chance: `make bench-decisions`.

    .venv/bin/python -m benchmarks.decisions --simulations 400       # some minutes on one core

Objects are drawn as those of the held-out photos: 61 photos of ten objects. Challengers are as good as the
champion, up to noise, of which all objects of a photo share a part. The rules of promotion decide, as they do
on records. `five_looks` is the share of champions that fall to any of five challengers; `at_one_level` is the
same without the log of comparisons, and `by_object` one look by intervals that draw object by object.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.shared.harness import Row, report, row
from mst.clicks import Click
from mst.command_line import count, parse, run
from mst.evaluation import ObjectRecord
from pipelines.promotion.looks import level_of
from pipelines.promotion.rules import Rules, decide

PHOTOS, OBJECTS, MAX_CLICKS, LOOKS = 61, 10, 20, 5
CORRELATION = 0.2
"""Of the differences of two objects in one photo."""


def record(number: int, clicks: int) -> ObjectRecord:
    """An object that reaches an IoU of 0.9 at a click."""
    ious = (*[0.5] * (clicks - 1), 0.95 if clicks < MAX_CLICKS else 0.5)
    return ObjectRecord(
        name=str(number),
        image_id=str(number // OBJECTS),
        height=100,
        width=100,
        area_share=0.1,
        extent=(0.3, 0.3),
        clicks=(Click(1, 1, is_positive=True),) * clicks,
        ious=ious,
        boundary_ious=ious,
        masks=(b"",) * clicks,
        seconds_model=(0.1,) * clicks,
        seconds_total=(0.1,) * clicks,
    )


def records(clicks: NDArray[np.float64]) -> list[ObjectRecord]:
    """Objects that need so many clicks, (N,), rounded."""
    whole = np.clip(np.rint(clicks), 1, MAX_CLICKS).astype(int).tolist()
    return [record(number, each) for number, each in enumerate(whole)]


def apart(records: Sequence[ObjectRecord]) -> list[ObjectRecord]:
    """The same objects, as if each were of a photo of its own."""
    return [replace(each, image_id=each.name) for each in records]


def noise(rng: np.random.Generator) -> NDArray[np.float64]:
    """Of the clicks of all objects, (N,): half the variance of a difference, and as correlated."""
    shared, own = rng.normal(size=(PHOTOS, 1)), rng.normal(size=(PHOTOS, OBJECTS))
    both: NDArray[np.float64] = 2 * (CORRELATION**0.5 * shared + (1 - CORRELATION) ** 0.5 * own)
    return both.ravel()


def is_promoted(challenger: Sequence[ObjectRecord], champion: Sequence[ObjectRecord], level: float) -> bool:
    """What the rules of promotion say."""
    return decide({"val": challenger}, {"val": champion}, MAX_CLICKS, Rules(), level).is_promoted


def rows(simulations: int) -> Iterator[Row]:
    """Simulate."""
    rng = np.random.default_rng(0)
    first, any_of_five, fixed_level, by_object = 0, 0, 0, 0
    for _ in range(simulations):
        difficulty = rng.uniform(3, 17, PHOTOS * OBJECTS)
        champion = records(difficulty + noise(rng))
        challengers = [records(difficulty + noise(rng)) for _ in range(LOOKS)]
        spent = [is_promoted(each, champion, level_of(look)) for look, each in enumerate(challengers, 1)]
        first += spent[0]
        any_of_five += any(spent)
        fixed_level += any(is_promoted(each, champion, level_of(1)) for each in challengers)
        by_object += is_promoted(apart(challengers[0]), apart(champion), level_of(1))
    yield row("false_promotions_one_look", first / simulations, "", at_most=0.05)
    yield row("false_promotions_five_looks", any_of_five / simulations, "", at_most=0.05)
    yield row("false_promotions_five_looks_at_one_level", fixed_level / simulations, "")
    yield row("false_promotions_one_look_by_object", by_object / simulations, "")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--simulations", type=count, default=400, help="champions that are challenged")
    report("decisions", rows(parse(parser, None).simulations))


if __name__ == "__main__":
    run(main)
