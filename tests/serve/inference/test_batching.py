"""Calls that share a run of the model, wait for it, or are too many."""

import asyncio
import threading
import time
from functools import partial

import pytest

from serve.errors import OverloadedError
from serve.inference.batching import Batcher
from serve.state.core import few_at_once
from serve.state.load import Load


def test_a_batcher_that_hangs_or_fails_again_and_again_is_ill():
    may_run, fails = threading.Event(), [True]

    def run(calls):
        may_run.wait()
        if fails[0]:
            raise ValueError("the device is lost")
        return calls

    async def use():
        batcher = Batcher(run, 1, lambda call: call)
        batcher.check(0)
        call = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.1)
        batcher.check(60)
        with pytest.raises(RuntimeError, match=r"a run has taken more than 0\.05 s"):
            batcher.check(0.05)
        may_run.set()
        await asyncio.gather(call, batcher(1), return_exceptions=True)
        batcher.check(0.05)
        await asyncio.gather(batcher(2), return_exceptions=True)
        with pytest.raises(RuntimeError, match="3 runs in a row have failed"):
            batcher.check(60)
        fails[0] = False
        assert await batcher(3) == 3
        batcher.check(60)

    asyncio.run(use())


def test_offers_wait_until_no_call_does_and_only_the_newest_are_kept():
    done, may_run = [], threading.Event()

    def run(calls):
        may_run.wait()
        done.extend(calls)
        return calls

    def fail():
        raise ValueError("an offer")

    async def use():
        batcher = Batcher(run, 1, lambda call: call)
        calls = [asyncio.create_task(batcher("call")) for _ in range(2)]
        await asyncio.sleep(0.05)
        for number in range(20):
            batcher.offer(partial(done.append, number))
        batcher.offer(fail)
        may_run.set()
        await asyncio.gather(*calls)
        while len(done) < 9:
            await asyncio.sleep(0.01)
        await batcher("last")

    asyncio.run(use())
    assert done == ["call", "call", *range(19, 12, -1), "last"]


def test_an_offer_that_hangs_is_noticed_as_a_run_is():
    may_end = threading.Event()

    async def use():
        batcher = Batcher(list, 1, lambda call: call)
        batcher.offer(may_end.wait)
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match=r"more than 0\.05 s"):
            batcher.check(0.05)
        may_end.set()
        assert await batcher("call") == "call"
        batcher.check(0.05)

    asyncio.run(use())


def test_calls_share_the_next_run_once_the_model_is_free():
    batches, may_run = [], threading.Event()

    def run(calls):
        batches.append(list(calls))
        may_run.wait()
        return [2 * call for call in calls]

    async def use():
        batcher = Batcher(run, 4, lambda call: call > 100)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher(call)) for call in (1, 2, 101, 3, 4, 5)]
        await asyncio.sleep(0.05)
        others[1].cancel()  # its caller gave up
        may_run.set()
        return [await first, *await asyncio.gather(*others, return_exceptions=True)]

    answers = asyncio.run(use())
    assert batches == [[0], [1, 3, 4, 5], [101]]
    assert answers[:2] == [0, 2]
    assert isinstance(answers[2], asyncio.CancelledError)
    assert answers[3:] == [202, 6, 8, 10]


def test_who_waits_for_a_run_that_fails_hears_of_it_and_the_next_run_goes_on():
    def run(calls):
        if 1 in calls:
            raise RuntimeError("out of memory")
        return calls

    async def use():
        batcher = Batcher(run, 4, lambda call: 0)
        failed = await asyncio.gather(batcher(1), return_exceptions=True)
        return failed, await batcher(2)

    (error,), answer = asyncio.run(use())
    assert str(error) == "out of memory"
    assert answer == 2


def test_more_work_than_somebody_would_wait_for_is_refused():
    load = Load(patience=0.25)

    def wait(seconds: float) -> None:
        with load.waiting():
            time.sleep(seconds)

    for _ in range(2):
        wait(0.1)  # so much does one take
    with load.waiting(), load.waiting():
        wait(0)  # two wait: 0.2 s
        with load.waiting(), pytest.raises(OverloadedError, match="3 clicks wait already"):
            wait(0)
    wait(0)


def test_a_batch_may_always_wait_and_an_old_pace_is_forgotten():
    load = Load(patience=0.05, batch=2)
    with load.waiting():
        time.sleep(0.1)  # the model starts
    with load.waiting(), load.waiting():  # they share a run
        with pytest.raises(OverloadedError), load.waiting():
            pass
        assert load.calls == 2
    time.sleep(0.06)
    with load.waiting(), load.waiting(), load.waiting():
        pass


def test_of_several_calls_few_run_at_once_and_the_first_that_fails_ends_the_others():
    running, most, finished = 0, 0, []

    async def call(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01 if number != 7 else 0)
        running -= 1
        if number == 7:
            raise OverloadedError("seven")
        finished.append(number)
        return number

    answers = asyncio.run(few_at_once(partial(call, number) for number in range(7)))
    assert (answers, most) == (list(range(7)), 4)
    finished.clear()

    async def fail_and_wait() -> None:
        with pytest.raises(OverloadedError, match="seven"):
            await few_at_once(partial(call, number) for number in range(7, 20))
        await asyncio.sleep(0.1)

    asyncio.run(fail_and_wait())
    assert finished == []
