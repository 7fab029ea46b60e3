"""Whose claim to be the champion is accepted: an order of claims that every client reads the same way.

MLflow changes an alias without looking, so two promotions that were decided against the same champion would
both win, the later one unseen by the earlier. What its database does order is versions: no two of a model get
the same number, and a version is there together with its tags or not at all. So a version is the claim.

A client reads the registry: the last version is number N, and a certain one is champion. It decides, and
creates its version with the tag `after` = N. The claim holds unless another claim that holds came in between,
numbered above N and below its own. That is a function of the tags alone, so every client comes to the same
answer, and any of them can finish what one that died has begun (`pipelines/registry/versions.py`).
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class State(StrEnum):
    """What has become of a claim."""

    OPEN = "open"
    """Its version is there, and the aliases may not follow it yet."""
    ACCEPTED = "accepted"
    """It held, and the aliases followed."""
    OVERTAKEN = "overtaken"
    """Another one was first."""

    @classmethod
    def _missing_(cls, value: object) -> "State | None":
        return cls.ACCEPTED if value == "crowned" else None  # as registries of earlier versions have it


class Claim(NamedTuple):
    """A version that was created to be the champion."""

    number: int
    """Of the version."""
    after: int
    """Number of the last version that there was when its promotion was decided."""
    state: State


def holding(claims: Iterable[Claim]) -> set[int]:
    """Return the numbers of the claims that hold."""
    found = set[int]()
    for claim in sorted(claims):
        came_between = any(claim.after < number < claim.number for number in found)
        if claim.state is State.ACCEPTED or (claim.state is State.OPEN and not came_between):
            found.add(claim.number)
    return found
