import time

from benchmarks.gpu import until
from benchmarks.shared.harness import row


def test_measuring_ends_with_the_time():
    figures = (row(str(number), number) for number in range(9))
    assert len(list(until(time.monotonic() - 1, figures))) == 1
    assert len(list(until(time.monotonic() + 60, figures))) == 8
