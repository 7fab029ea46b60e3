"""What is left out of a data set, or looks wrong in it: counted, said, and too much of it refused."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from mst.errors import DataError

_log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """What of a data set is left out, or looks wrong."""

    kind: str
    """What is wrong, in a few words that are the same for all of the kind."""
    where: str
    """The image, or the annotation."""
    detail: str = ""
    """What exactly, and what would be right."""
    lost: int = 1
    """Objects that are left out for it; 0 where the data are used all the same."""
    is_fault: bool = True
    """False for what a rule of ours leaves out of sound data, such as crowds."""

    def __str__(self) -> str:
        said = self.detail or self.kind
        return said if said.startswith(self.where) else f"{self.where}: {said}"


def lost_by_kind(problems: Sequence[Problem]) -> Counter[str]:
    """Count the objects that are left out, by why."""
    lost: Counter[str] = Counter()
    for each in problems:
        if each.lost:
            lost[each.kind] += each.lost
    return lost


def tell(problems: Sequence[Problem], what: str) -> None:
    """Log what was wrong with a data set, by kind with the first of each, and what rules left out."""
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for each in problems:
        if each.is_fault:
            by_kind[each.kind].append(each)
    for kind, found in by_kind.items():
        lost = lost_by_kind(found)[kind]
        _log.warning(
            "%s: %d x %s, %d objects left out; the first is %s", what, len(found), kind, lost, found[0]
        )
    by_rule = lost_by_kind([each for each in problems if not each.is_fault])
    if by_rule:
        _log.warning("%s: left out %s", what, ", ".join(f"{n} x {kind}" for kind, n in by_rule.most_common()))


def check_share(problems: Sequence[Problem], kept: int, what: str, max_faulty: float) -> None:
    """Refuse data of which nothing is left, or too much is faulty.

    Args:
        problems: what is wrong with them.
        kept: objects that are left.
        what: to call the data.
        max_faulty: most of all objects, as a share, that may be left out as faulty.

    Raises:
        DataError: see above.
    """
    faults = [each for each in problems if each.is_fault]
    lost = lost_by_kind(faults).total()
    if not kept:
        raise DataError(f"no objects that can be used in {what}{_reasons(problems)}")
    if lost > max_faulty * (lost + kept):
        raise DataError(
            f"{what}: {lost} of {lost + kept} objects are faulty, and at most {max_faulty:.0%} may be "
            f"(data.max_faulty){_reasons(faults)}; 'pipelines/prepare.py --check' lists them"
        )


def _reasons(problems: Sequence[Problem]) -> str:
    """What was left out, and the first of each kind."""
    lost = lost_by_kind(problems)
    first = {each.kind: each for each in reversed(problems) if each.lost}
    return "".join(f"; left out {count} x {kind}, as {first[kind]}" for kind, count in lost.most_common())
