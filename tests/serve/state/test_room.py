"""Requests wait where their images do not fit into memory together."""

import asyncio
from contextlib import suppress

import pytest

from serve.state.room import Room


class Requests:
    """Requests that hold their images until they are told to end."""

    def __init__(self, room: Room) -> None:
        self._room, self.inside, self._ends = room, [], {}

    def begin(self, name: str, *images: int) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        return asyncio.create_task(self._answer(name, images))

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await asyncio.sleep(0.01)

    async def _answer(self, name: str, images: tuple[int, ...]) -> None:
        with self._room.request():
            for pixels in images:
                await self._room.take(pixels)
                await asyncio.sleep(0)
            self.inside.append(name)
            await self._ends[name].wait()


def run(use, pixels: int = 10) -> None:
    async def main() -> None:
        await use(Requests(Room(pixels)))

    asyncio.run(main())


def test_who_comes_first_is_let_in_first():
    async def use(requests):
        for name, pixels in (("a", 6), ("b", 4), ("c", 7), ("d", 1)):
            requests.begin(name, pixels)
        await asyncio.sleep(0.01)
        assert requests.inside == ["a", "b"]
        await requests.end("b")
        assert requests.inside == ["a", "b"]  # d would fit, but c was there before it
        await requests.end("a")
        assert requests.inside == ["a", "b", "c", "d"]

    run(use)


def test_an_image_that_is_larger_than_the_room_is_let_in_alone():
    async def use(requests):
        requests.begin("huge", 30)
        requests.begin("small", 1)
        await asyncio.sleep(0.01)
        assert requests.inside == ["huge"]
        await requests.end("huge")
        assert requests.inside == ["huge", "small"]

    run(use)


def test_a_request_with_several_images_does_not_wait_for_itself_or_for_another_such():
    async def use(requests):
        for name in ("a", "b"):
            requests.begin(name, 5, 5, 5)
        await asyncio.sleep(0.01)
        assert requests.inside == ["a", "b"]
        requests.begin("c", 1)
        await requests.end("a")
        assert requests.inside == ["a", "b"]
        await requests.end("b")
        assert requests.inside == ["a", "b", "c"]

    run(use)


@pytest.mark.parametrize("room", ["comes later", "has come", "comes at the same time"])
def test_who_gives_up_leaves_room(room):
    async def use(requests):
        requests.begin("a", 10)
        await asyncio.sleep(0.01)
        waiting = requests.begin("b", 8)
        requests.begin("c", 2)
        await asyncio.sleep(0.01)
        if room == "comes later":
            waiting.cancel()
        else:
            requests._ends["a"].set()
            if room == "has come":  # and b does not know it yet
                await asyncio.sleep(0)
            waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        await requests.end("a")
        assert requests.inside == ["a", "c"]
        requests.begin("d", 8)
        await asyncio.sleep(0.01)
        assert requests.inside == ["a", "c", "d"]

    run(use)


def test_outside_a_request_nothing_is_counted():
    async def use(requests):
        for _ in range(3):
            await requests._room.take(10)
        requests.begin("a", 10)
        await asyncio.sleep(0.01)
        assert requests.inside == ["a"]

    run(use)
