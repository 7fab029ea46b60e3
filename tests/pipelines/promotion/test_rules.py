"""The rules of promotion, on records made up for them."""

import dataclasses
import math

import numpy as np
import pytest

from mst.clicks import Click
from mst.evaluation import ObjectRecord
from pipelines.promotion.rules import Rules, decide

MAX_CLICKS = 10


def record(name: str, noc: int, ms: float) -> ObjectRecord:
    """An object that reaches an IoU of 0.9 at click `noc`; 10 stands for never."""
    ious = (0.5,) * 10 if noc == MAX_CLICKS else (0.5,) * (noc - 1) + (0.95,)
    return ObjectRecord(
        name=name,
        image_id=name,
        height=10,
        width=10,
        area_share=0.25,
        extent=(0.5, 0.5),
        clicks=(Click(1, 1, True),) * len(ious),
        ious=ious,
        boundary_ious=ious,
        masks=(b"",) * len(ious),
        seconds_model=(ms / 1000,) * len(ious),
        seconds_total=(ms / 1000,) * len(ious),
    )


def records(shift: float = 0.0, ms: float = 40.0, count: int = 60, seed: int = 0) -> list[ObjectRecord]:
    """Objects of varied difficulty; a share |shift| of them needs one click more, or less."""
    rng = np.random.default_rng(seed)
    base = rng.integers(3, 8, count)
    moved = base + np.sign(shift) * (np.arange(count) < abs(shift) * count)
    jitter = rng.normal(0, 0.5, count)
    return [
        record(f"object {n}", int(noc), ms + j) for n, (noc, j) in enumerate(zip(moved, jitter, strict=True))
    ]


def outcome(challenger, champion, **rules):
    decision = decide({"a": challenger}, {"a": champion}, MAX_CLICKS, Rules(**rules))
    return decision.is_promoted, {each.rule: each for each in decision.reasons}, decision.why()


def test_a_better_one_is_promoted():
    promoted, reasons, why = outcome(records(-0.3), records())
    assert promoted
    assert "-0.30 clicks [-0.42, -0.18]: better" in reasons["gain"].finding
    assert why == f"gain: {reasons['gain'].finding}"


def test_an_equal_one_is_not():
    promoted, reasons, why = outcome(records(), records())
    assert not promoted
    assert why == f"gain: {reasons['gain'].finding}"
    assert "not better, no worse" in why


def test_what_chance_explains_is_no_gain():
    assert not outcome(records(-1 / 60), records())[0]


def test_a_worse_one_is_not_however_fast():
    promoted, reasons, _ = outcome(records(0.4, ms=5), records())
    assert not promoted
    assert not reasons["gain"].holds
    assert not reasons["no loss on a"].holds


def test_a_better_one_may_be_a_little_slower_and_no_more():
    assert outcome(records(-0.3, ms=48), records())[0]
    promoted, reasons, why = outcome(records(-0.3, ms=60), records())
    assert not promoted
    assert reasons["gain"].holds
    assert why.startswith("latency: 60.")
    assert outcome(records(-0.3, ms=60), records(), max_ms=70)[0]
    assert not outcome(records(-0.3, ms=40), records(), max_ms=30)[0]


def test_one_that_is_no_worse_and_faster_is_promoted():
    assert outcome(records(ms=30), records())[0]
    assert not outcome(records(ms=38), records())[0]  # by less than a tenth
    assert outcome(records(ms=38), records(), faster_by=0.02)[0]
    assert not outcome(records(0.1, ms=30), records())[0]  # faster, but perhaps worse


def test_a_gain_on_one_data_set_does_not_pay_for_a_loss_on_another():
    challenger = {"large": records(-0.8, count=200), "small": records(0.5, count=20)}
    champion = {"large": records(count=200), "small": records(count=20)}
    decision = decide(challenger, champion, MAX_CLICKS, Rules())
    why = "no loss on small: NoC@90 +0.50 clicks [+0.25, +0.75], at most +0.25 and explained by chance"
    assert decision.why().endswith(why)
    assert not decide(challenger, champion, MAX_CLICKS, Rules(most_lost=0.6)).is_promoted  # it is certain


def test_a_loss_on_a_data_set_counts_where_chance_does_not_explain_it():
    few, certain = records(0.2, count=10), records(0.2, count=200)
    gain = records(-0.6, count=200)
    ours = [{"large": gain, "small": each} for each in (few, certain)]
    theirs = [{"large": records(count=200), "small": records(count=count)} for count in (10, 200)]
    assert decide(ours[0], theirs[0], MAX_CLICKS, Rules()).is_promoted
    assert (
        "no loss on small: NoC@90 +0.20 clicks [+0.1" in decide(ours[1], theirs[1], MAX_CLICKS, Rules()).why()
    )


def test_data_sets_weigh_alike():
    """A large set on which nothing is gained does not hide the gain on a small one, nor the reverse."""
    ours = {"large": records(count=400), "small": records(-0.5, count=40)}
    theirs = {"large": records(count=400), "small": records(count=40)}
    gain = next(each for each in decide(ours, theirs, MAX_CLICKS, Rules()).reasons if each.rule == "gain")
    assert gain.finding.startswith("NoC@90 -0.25 clicks [-0.3")
    assert ", over all objects -0.05 clicks [-0.07, -0.03]: better" in gain.finding


def test_objects_of_one_image_are_one_witness():
    """The same gain, of objects that lie in six images by tens: it may be an accident of two of them."""
    gained = [record(f"object {n}", 4 if n < 20 else 5, 40) for n in range(60)]
    before = [record(f"object {n}", 5, 40) for n in range(60)]
    assert outcome(gained, before)[0]
    in_images = [
        [dataclasses.replace(each, image_id=f"image {n // 10}") for n, each in enumerate(records)]
        for records in (gained, before)
    ]
    promoted, reasons, why = outcome(*in_images)
    assert not promoted
    assert "-0.33 clicks [-0.83, +0.00]: not better" in why
    assert reasons["figures of the challenger"].finding == "60 objects of 6 images"
    in_one = [[dataclasses.replace(each, image_id="a") for each in records] for records in (gained, before)]
    assert "all objects of a are of one image" in outcome(*in_one)[2]


@pytest.mark.parametrize("field", ["ious", "seconds_model"])
@pytest.mark.parametrize("broken", ["challenger", "champion"])
def test_figures_that_are_no_numbers_decide_nothing(field, broken):
    pair = {"challenger": records(-0.3), "champion": records()}
    first = pair[broken][0]
    pair[broken][0] = dataclasses.replace(first, **{field: (*getattr(first, field)[:-1], math.nan)})
    promoted, reasons, why = outcome(pair["challenger"], pair["champion"])
    assert not promoted
    assert why == f"figures of the {broken}: of 1 objects of a they are no numbers"
    assert "gain" not in reasons


@pytest.mark.parametrize("missing", ["challenger", "champion"])
def test_a_missing_data_set_decides_nothing(missing):
    pair = {name: {"a": records(), "b": records()} for name in ("challenger", "champion")}
    del pair[missing]["b"]
    decision = decide(pair["challenger"], pair["champion"], MAX_CLICKS, Rules())
    assert decision.why() == f"same objects: the {missing} was not evaluated on b"


def test_other_objects_decide_nothing():
    promoted, _, why = outcome(records(-0.3)[1:], records())
    assert not promoted
    assert "a is not the same: 59 and 60 objects" in why
    assert not outcome([*records(-0.3)[1:], records()[0]], records())[0]  # in another order


def first(challenger, **changes):
    """The decision on a first champion beside peers of which one does better than the other."""
    floor = {"untrained": {"a": records(0.9)}, "grabcut": {"a": records()}}
    rules = Rules(max_ms=changes.pop("max_ms", None))
    return decide(challenger, None, MAX_CLICKS, rules, **{"floor": floor, **changes})


def test_the_first_needs_figures_and_has_to_be_better_than_each_method_of_the_floor():
    better = {"a": records(-0.3)}
    decision = first(better)
    assert decision.is_promoted
    assert decision.why().startswith("floor: NoC@90 -1.20 clicks [")
    assert decision.why().endswith("] beside grabcut")
    for equal in ({"a": records()}, {"a": records(-1 / 60)}):
        assert not first(equal).is_promoted
        assert first(equal).why().endswith("] beside grabcut")  # better than the other
    assert not first(better, max_ms=10).is_promoted
    assert not first({"a": []}).is_promoted
    assert not first({}).is_promoted
    unknown = first(better, floor=None)
    assert not unknown.is_promoted
    assert unknown.why() == "floor: there is no champion, and no peer was evaluated in its place"


def test_times_that_were_taken_by_turns_decide():
    pair = {"a": records(ms=30)}, {"a": records(ms=40)}

    def decided(ours, theirs, timed):
        return decide({"a": ours}, {"a": theirs}, MAX_CLICKS, Rules(), timed=timed)

    assert decided(records(ms=90), records(ms=40), pair).is_promoted  # as fast as by turns
    slow = decided(records(-0.3, ms=40), records(ms=40), ({"a": records(ms=80)}, {"a": records(ms=40)}))
    assert slow.why().startswith("latency: 80.")
    assert slow.why().endswith("budget 50.1")
