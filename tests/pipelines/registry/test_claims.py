"""The order of claims, and promotions that race, on a real registry."""

import itertools
import random

import pytest

from pipelines.registry.claims import Claim, State, holding

OPEN, CROWNED, OVERTAKEN = State


def test_of_claims_after_the_same_version_the_first_holds():
    assert holding([Claim(5, 4, OPEN), Claim(6, 4, OPEN), Claim(7, 4, OPEN)]) == {5}


def test_a_claim_that_was_overtaken_does_not_stand_in_the_way():
    assert holding([Claim(5, 4, OPEN), Claim(6, 4, OPEN), Claim(7, 5, OPEN)]) == {5, 7}


def test_a_claim_is_not_revived_when_its_winner_is_deleted():
    assert holding([Claim(6, 4, OVERTAKEN), Claim(7, 5, CROWNED)]) == {7}


def test_versions_that_are_no_claims_do_not_matter():
    assert holding([Claim(9, 2, OPEN)]) == {9}


def test_no_two_decisions_about_the_same_champion_both_hold():
    rng = random.Random(0)
    for _ in range(200):
        claims = [Claim(n, rng.randrange(max(0, n - 4), n), OPEN) for n in range(1, 12)]
        held = sorted(holding(claims))
        after = {claim.number: claim.after for claim in claims}
        for earlier, later in itertools.pairwise(held):
            assert after[later] >= earlier  # the later one was decided knowing of the earlier
        assert held[0] == 1  # and there is always one that goes on


@pytest.mark.parametrize("settled", range(1, 12))
def test_what_was_settled_stays_so_whoever_looks_later(settled):
    rng = random.Random(settled)
    claims = [Claim(n, rng.randrange(max(0, n - 4), n), OPEN) for n in range(1, 12)]
    first = holding(claims[:settled])
    states = [
        claim._replace(state=CROWNED if claim.number in first else OVERTAKEN) for claim in claims[:settled]
    ]
    assert holding([*states, *claims[settled:]]) == holding(claims)
