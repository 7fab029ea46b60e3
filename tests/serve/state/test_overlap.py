"""Requests at the same time share what they have in common; what a replica took with it is done again."""

import asyncio
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import ray.exceptions
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, TaskCancelledError

from mst.clicks import Click
from mst.config import EvalConfig
from mst.data.pixels.images import resize
from mst.predictor import Crop
from serve.inference.model import Answer, Version
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state import session
from serve.state.session import Sessions
from serve.state.shared import Others, Shared
from serve.wire.models import ModelInfo
from tests.conftest import picture

CLICKS = [Click(20 + 5 * number, 30 + 7 * number, True) for number in range(5)]
VERSION = Version(
    "folder", ModelInfo(name="mst", version="1", digest="a"), 56, EvalConfig(zoom_first=True), encodes=False
)
ALONE = len(CLICKS) + 1  # forwards: two looks at the first click


class Model:
    """Answers after a moment with logits of the clicks, and counts."""

    def __init__(self) -> None:
        self.forwards = 0
        self.crops: list[Crop] = []
        self.fails: list[Exception] = []

    async def __call__(self, address: str, crop: Crop) -> Answer:
        """As a segmenter does."""
        self.forwards += 1
        self.crops.append(crop)
        await asyncio.sleep(0.02)
        if self.fails:
            raise self.fails.pop()
        logits = np.full((14, 14), len(crop.clicks) / 10 - 1, np.float32)
        logits[3:9, 3:9] = 2
        return Answer(logits, (), 1, 0.02)


def used(use: Callable, **settings: int) -> tuple[Model, object]:
    """Use the sessions of a replica."""
    model = Model()
    sessions = Sessions(ServeSettings(**settings), model, Metrics("local"))
    return model, asyncio.run(use(sessions))


def masks_of(sessions: Sessions, image: np.ndarray, *counts: int):
    return [sessions.predict("image", image, CLICKS[:count], VERSION) for count in counts]


async def alone(sessions):
    return [(await each)[0].prediction for each in masks_of(sessions, picture(), *range(1, 6))]


def test_quick_clicks_cost_what_slow_ones_cost():
    async def quickly(sessions):
        tasks = []
        for each in masks_of(sessions, picture(), *range(1, 6)):
            tasks.append(asyncio.create_task(each))
            await asyncio.sleep(0.005)
        return [(await each)[0].prediction for each in tasks]

    (quick, found), (slow, expected) = used(quickly), used(alone)
    assert (quick.forwards, slow.forwards) == (ALONE, ALONE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_equal_requests_at_the_same_time_are_one():
    async def at_once(sessions):
        return await asyncio.gather(*masks_of(sessions, picture(), 1, 1, 1))

    assert used(at_once)[0].forwards == 2


def test_a_first_look_costs_nothing_beside_the_answer_in_whatever_order_they_are_asked_for():
    async def use(sessions, in_order):
        async def ask(first_look):
            found, _ = await sessions.predict("image", picture(), CLICKS[:1], VERSION, first_look=first_look)
            return found

        if in_order:
            return [await ask(first_look) for first_look in (True, False, True)]
        return await asyncio.gather(*map(ask, (True, False, True)))

    (one, in_turn), (other, at_once) = (used(partial(use, in_order=each)) for each in (True, False))
    assert one.forwards == other.forwards == 2
    assert [each.is_final for each in in_turn] == [False, True, True]  # what is known already is the answer
    assert [each.is_final for each in at_once] == [False, True, False]
    for first, answer, _ in (in_turn, at_once):
        assert first.prediction.box is None
        assert answer.prediction.box is not None  # the closer look's


def test_a_first_look_at_what_is_looked_at_once_is_the_answer():
    async def use(sessions):
        found, _ = await sessions.predict("image", picture(), CLICKS[:2], VERSION, first_look=True)
        return found

    model, found = used(use)
    assert found.is_final
    assert model.forwards == 3


def test_who_gives_up_leaves_the_others_their_forward_and_the_last_one_ends_it():
    async def use(sessions):
        first, second = (asyncio.create_task(each) for each in masks_of(sessions, picture(), 5, 5))
        await asyncio.sleep(0.03)
        first.cancel()
        kept = (await second)[0].prediction
        third, fourth = (
            asyncio.create_task(sessions.predict("other", picture(1), CLICKS, VERSION)) for _ in range(2)
        )
        await asyncio.sleep(0.03)
        third.cancel()
        fourth.cancel()
        await asyncio.sleep(0.2)
        return kept

    model, kept = used(use)
    assert len(kept.clicks) == len(CLICKS)
    assert ALONE < model.forwards <= ALONE + 3  # of the other image two looks had begun


def test_objects_of_a_large_image_that_are_clicked_in_turn_cost_one_forward_a_click():
    """Their predictions have 1.9 MB each and do not fit beside one another; what the model said does."""
    image = picture(height=600, width=800)

    async def in_turn(sessions):
        for count in range(1, 6):
            for left in range(10):
                clicks = [Click(each.row, each.col + 9 * left, True) for each in CLICKS[:count]]
                await sessions.predict("image", image, clicks, VERSION)

    model, _ = used(in_turn, cache_bytes=5_000_000)
    assert model.forwards == 10 * ALONE


def test_a_box_that_is_looked_at_again_is_not_resized_again():
    image = picture(height=600, width=800)

    async def use(sessions):
        for left in (0, 9):
            for count in range(1, 6):
                clicks = [Click(each.row, each.col + left, True) for each in CLICKS[:count]]
                await sessions.predict("image", image, clicks, VERSION)

    model, _ = used(use)
    pixels = {crop.box: crop.image for crop in model.crops}
    assert len(pixels) < len(model.crops) == 2 * ALONE
    assert all(crop.image is pixels[crop.box] for crop in model.crops)
    for box, found in pixels.items():
        seen = image[box.slices()] if box else image
        np.testing.assert_array_equal(found, resize(seen, 56, 56))


def replicas(model: Model, others: Others | None, count: int = 3) -> list[Sessions]:
    """Several HTTP replicas of one server."""
    return [Sessions(ServeSettings(), model, Metrics("local"), None, others) for _ in range(count)]


def test_clicks_that_go_to_any_replica_cost_what_they_cost_in_one():
    async def use(model):
        shared, found = Shared(10**8), []
        sessions = replicas(model, Others(shared.find, shared.tell))
        for number in range(5):
            (click,) = masks_of(sessions[number % 3], picture(), number + 1)
            found.append((await click)[0].prediction)
            await asyncio.sleep(0)  # until the others are told
        (again,) = masks_of(sessions[0], picture(), 5)
        return [*found, (await again)[0].prediction]

    model = Model()
    *found, again = asyncio.run(use(model))
    assert model.forwards == ALONE
    _, expected = used(alone)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
    np.testing.assert_array_equal(again.probabilities, expected[-1].probabilities)


@pytest.mark.parametrize("is_away", [True, False])
def test_a_click_does_without_the_others_where_they_do_not_answer(monkeypatch, is_away):
    monkeypatch.setattr(session, "_OTHERS_SECONDS", 0.05)

    async def nobody(*_):
        if is_away:
            raise RayActorError
        await asyncio.sleep(60)

    async def use(model):
        return await alone(replicas(model, Others(nobody, nobody), 1)[0])

    model = Model()
    assert [len(each.clicks) for each in asyncio.run(use(model))] == [1, 2, 3, 4, 5]
    assert model.forwards == ALONE


def gone() -> list[Exception]:
    """Every error of Ray's but those of the call itself."""
    kinds, found = [RayError], []
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        is_of_call = issubclass(kind, RayTaskError | TaskCancelledError)
        if kind.__module__ == ray.exceptions.__name__ and not is_of_call:
            found.append(kind.__new__(kind))
    return found


@pytest.mark.parametrize("error", gone(), ids=lambda each: type(each).__name__)
def test_however_a_replica_goes_its_call_is_made_again(error):
    async def use(sessions):
        sessions._forward.fails = [error]
        return await alone(sessions)

    model, found = used(use)
    assert model.forwards == ALONE + 1
    assert len(found) == len(CLICKS)


def test_replicas_that_are_killed_for_memory_are_among_those_that_go():
    assert {OutOfMemoryError, RayActorError} <= {type(each) for each in gone()}


def test_a_call_that_fails_by_itself_is_not_made_again():
    async def use(sessions):
        sessions._forward.fails = [RayTaskError("predict", "traceback", ValueError("wrong"))]
        with pytest.raises(RayTaskError):
            await alone(sessions)

    assert used(use)[0].forwards == 1
