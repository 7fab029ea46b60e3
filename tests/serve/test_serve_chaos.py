"""The server under faults and hostile requests, for a short while; the benchmarks do it for long."""

import pytest
import ray

from benchmarks import serve_faults, serve_hostile

pytestmark = pytest.mark.chaos


@pytest.fixture(autouse=True)
def no_other_ray():
    """Both start a Ray of their own, with sixteen clients on one machine."""
    ray.shutdown()


def broken_promises(rows) -> list[str]:
    return [f"{row.name} is {row.value}, not {row.goal}" for row in rows if row.holds is False]


def test_nobody_notices_what_dies_moves_comes_and_goes():
    assert broken_promises(serve_faults.rows(seconds=20)) == []


def test_nothing_that_is_sent_harms_the_server():
    assert broken_promises(serve_hostile.rows(requests=4000)) == []
