"""From an image and a list of clicks to a prediction, by way of the segmenter.

Nothing here is needed to answer a request but the request itself: a prediction that is not known any more is
replayed click by click, with the same result.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from mst.clicks import Click
from mst.data.pixels.images import RGB
from mst.errors import CheckpointError
from mst.predictor import Crop, Prediction, forwards_of_click, next_crop
from mst.zoom import Box
from serve.errors import OverloadedError, took_the_call_with_it
from serve.inference.model import Answer, Selected, Version
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.cache import ByteLRU
from serve.state.flights import Flights
from serve.state.known import NOTHING, About, Known, Start
from serve.state.load import Load
from serve.state.shared import Others

Forward = Callable[[str, Crop], Awaitable[Answer]]
"""Asks a version, by its address, for what it says of a crop."""

Anticipate = Callable[[str, RGB], Awaitable[None]]
"""Tells a version, by its address, of pixels of a crop (S, S, 3) that it will be asked about."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries of a call whose replica died
_TOLD_AT_ONCE = 4  # crops that the model is being told of
_OTHERS_SECONDS = 0.5  # that a click waits at most for what other replicas know


class Found(NamedTuple):
    """The object after some clicks, and what the model chose for the last one."""

    prediction: Prediction
    selected: tuple[Selected, ...]
    is_final: bool
    """Whether all looks at the last click are done; a first look is the first of two."""


class Looked(NamedTuple):
    """What one forward found."""

    known: Known
    prediction: Prediction


class Seconds(NamedTuple):
    """What the model took for a prediction; nothing where it was known already."""

    model: float
    """Waiting for the model, and its forwards."""
    forward: float
    """The forwards alone."""


@dataclass
class Progress:
    """How far a request has come, for whoever has to give it up."""

    clicks: int = 0
    """Of the annotator's, that are predicted and kept."""
    of: int = 0
    """So many that there are."""


_Key = tuple[About, tuple[Click, ...]]


class Sessions:
    """Predictions of one HTTP replica.

    Args:
        settings: of the server.
        forward: calls the model.
        metrics: what is counted and timed.
        anticipate: tells the model what comes; None where it need not know.
        others: HTTP replicas; None where there are none.
    """

    def __init__(
        self,
        settings: ServeSettings,
        forward: Forward,
        metrics: Metrics,
        anticipate: Anticipate | None = None,
        others: Others | None = None,
    ) -> None:
        self._forward, self._metrics = forward, metrics
        self._crops: ByteLRU[tuple[str, int, Box | None], Crop] = ByteLRU(settings.cache_bytes // 8)
        self._known: ByteLRU[_Key, Known] = ByteLRU(settings.cache_bytes // 4)
        self._pasted: ByteLRU[_Key, Prediction] = ByteLRU(settings.cache_bytes)
        self._first_looks: ByteLRU[_Key, Known] = ByteLRU(settings.cache_bytes // 16)
        self._flights: Flights[_Key, tuple[Found, Seconds]] = Flights()
        self._looks: Flights[_Key, tuple[Looked, Seconds]] = Flights()
        self._tell, self._telling = anticipate, set[asyncio.Task[None]]()
        self._others, self._sharing = others, set[asyncio.Task[None]]()
        self._load = Load(settings.queue_seconds, settings.max_batch)
        metrics.watch_queue(lambda: self._load.calls)

    async def predict(
        self,
        image_id: str,
        image: RGB,
        clicks: Sequence[Click],
        version: Version,
        start: Start = NOTHING,
        progress: Progress | None = None,
        *,
        first_look: bool = False,
    ) -> tuple[Found, Seconds]:
        """Predict the object that the clicks mean, from the longest prefix of them that is known.

        Requests at the same time share what they have in common: each click of an object is predicted once.

        Args:
            image_id: of the image.
            image: (H, W, 3).
            clicks: the annotator's, in the image's pixels.
            version: of the model.
            start: what came before them.
            progress: told of each click that is done.
            first_look: whether what the first forward of the last click says is enough where it takes more.

        Returns:
            What was found, and what the model took.
        """
        taken: list[Seconds] = []
        about = image_id, f"{version.address} {version.info.digest}", start.key
        given = (*start.clicks, *clicks)
        done = await self._longest_known(about, given)
        self._metrics.cache("prediction", done == len(given))
        found, progress = None, progress or Progress()
        if start.prediction is not None:
            found = Found(start.prediction, (), is_final=True)
        for number in range(max(done, len(start.clicks), 1), len(given) + 1):
            key = about, given[:number]
            if (known := self._known.get(key)) is not None:
                found = await self._paste(key, known, image)
            else:
                previous = found.prediction if found else None
                is_enough = first_look and number == len(given)
                found, seconds = await self._new_click(key, image, previous, version, is_enough)
                taken.append(seconds)
            progress.clicks = number - len(start.clicks)
        assert found is not None  # there is at least one click
        return found, _total(taken)

    def anticipate(self, image_id: str, image: RGB, version: Version, last: Prediction | None = None) -> None:
        """Have the crop encoded that the next click will most likely look at; nobody waits for it.

        Args:
            image_id: of the image.
            image: (H, W, 3).
            version: of the model.
            last: the prediction that the next click will correct; None for the first click on an object.
        """
        if self._tell and version.encodes and len(self._telling) < _TOLD_AT_ONCE:
            _in_background(self._anticipate(image_id, image, version, last), self._telling)

    async def _anticipate(self, image_id: str, image: RGB, version: Version, last: Prediction | None) -> None:
        assert self._tell is not None
        # The next click is somewhere; what it looks at depends on the mask and the clicks before it.
        clicks = (*last.clicks, last.clicks[-1]) if last else ()
        crop = await asyncio.to_thread(self._next_crop, image_id, image, clicks, last, version)
        if last is None or crop.box != last.box:
            with suppress(RayError, RayServeException, CheckpointError):
                await self._tell(version.address, crop.image)

    async def _new_click(
        self, key: _Key, image: RGB, previous: Prediction | None, version: Version, first_look: bool
    ) -> tuple[Found, Seconds]:
        """Predict the last of the clicks, together with whoever asks for the same."""
        if first_look and forwards_of_click(previous, version.eval) > 1:
            looked, seconds = await self._first_look(key, image, previous, version)
            return Found(looked.prediction, looked.known.selected, is_final=False), seconds
        return await self._flights.join(key, partial(self._predict_click, key, image, previous, version))

    async def _predict_click(
        self, key: _Key, image: RGB, previous: Prediction | None, version: Version
    ) -> tuple[Found, Seconds]:
        """Run the forwards of the last of the clicks, and keep what comes of them."""
        forwards = forwards_of_click(previous, version.eval)
        looked, seconds = await self._first_look(key, image, previous, version)
        taken = [seconds]
        for _ in range(1, forwards):
            looked, seconds = await self._look(key, image, looked.prediction, version)
            taken.append(seconds)
        known, prediction = looked
        self._known.put(key, known, known.bytes)
        if self._others is not None:
            _in_background(_share(self._others, key[0], known), self._sharing)
        self._pasted.put(key, prediction, prediction.seen.nbytes)
        return Found(prediction, known.selected, is_final=True), _total(taken)

    async def _first_look(
        self, key: _Key, image: RGB, previous: Prediction | None, version: Version
    ) -> tuple[Looked, Seconds]:
        """Run the first forward of the last of the clicks, once for all who ask."""
        if (known := self._first_looks.get(key)) is not None:
            return await self._pasted_look(known, image), Seconds(0, 0)
        looked, seconds = await self._looks.join(key, partial(self._look, key, image, previous, version))
        self._first_looks.put(key, looked.known, looked.known.bytes)
        return looked, seconds

    async def _look(
        self, key: _Key, image: RGB, previous: Prediction | None, version: Version
    ) -> tuple[Looked, Seconds]:
        """Run one forward for the last of the clicks."""
        (image_id, *_), clicks = key
        with self._stage("prepare"):
            crop = await asyncio.to_thread(self._next_crop, image_id, image, clicks, previous, version)
        began = time.perf_counter()
        with self._stage("model"), self._load.waiting():
            answer = await self._call(version.address, crop)
        waited = time.perf_counter() - began
        self._metrics.forward(answer.batch, answer.seconds)
        known = Known(clicks, crop.box, crop.side, answer.logits, answer.selected)
        return await self._pasted_look(known, image), Seconds(waited, answer.seconds)

    async def _pasted_look(self, known: Known, image: RGB) -> Looked:
        with self._stage("paste"):
            return Looked(known, await asyncio.to_thread(known.paste, _shape(image)))

    async def _paste(self, key: _Key, known: Known, image: RGB) -> Found:
        """Return a prediction that is known, made anew where there was no room for it."""
        prediction = self._pasted.get(key)
        if prediction is None:
            prediction = (await self._pasted_look(known, image)).prediction
            self._pasted.put(key, prediction, prediction.seen.nbytes)
        return Found(prediction, known.selected, is_final=True)

    def _next_crop(
        self,
        image_id: str,
        image: RGB,
        clicks: tuple[Click, ...],
        previous: Prediction | None,
        version: Version,
    ) -> Crop:
        """Prepare a forward; its pixels are kept for the next click, which mostly looks at the same box."""
        last = self._crops.get((image_id, version.image_size, previous.box if previous else None))
        crop = next_crop(image, clicks, previous, version.image_size, version.eval, last)
        if last is None or crop.image is not last.image:
            key = image_id, version.image_size, crop.box
            self._crops.put(key, Crop(crop.image, None, (), crop.box), crop.image.nbytes)
        return crop

    async def _longest_known(self, about: About, clicks: tuple[Click, ...]) -> int:
        """How many of the clicks are known already, here or to another replica."""
        numbers = range(len(clicks), 0, -1)
        done = next((each for each in numbers if self._known.get((about, clicks[:each])) is not None), 0)
        if self._others is None or done == len(clicks):
            return done
        with suppress(RayError, RayServeException, TimeoutError):
            async with asyncio.timeout(_OTHERS_SECONDS):
                found = await self._others.find(about, clicks, done)
            if found is not None:
                self._known.put((about, found.clicks), found, found.bytes)
                return len(found.clicks)
        return done

    async def _call(self, address: str, crop: Crop) -> Answer:
        """Ask the model; a call has no effect but its answer, so it is made again where that may help.

        In whatever way a replica goes (killed, out of memory, with its node), its call is for another one.
        A version that a replica cannot load was ready in another one: it has failed to fetch it, say.
        """
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self._forward(address, crop)
            except (RayError, CheckpointError) as error:
                if not took_the_call_with_it(error) and not isinstance(error, CheckpointError):
                    raise
                self._metrics.retry()
                await asyncio.sleep(pause)  # the request's deadline ends this
                pause = min(2 * pause, _LONGEST_PAUSE)
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise OverloadedError("the model has more to do than it can") from error

    def _stage(self, name: str) -> AbstractContextManager[None]:
        return self._metrics.stage(name)


async def _share(others: Others, about: About, known: Known) -> None:
    with suppress(RayError, RayServeException, TimeoutError):
        async with asyncio.timeout(_OTHERS_SECONDS):
            await others.tell(about, known)


def _in_background(work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
    """Do what no request waits for; `tasks` holds what is under way."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _total(taken: Sequence[Seconds]) -> Seconds:
    return Seconds(sum(each.model for each in taken), sum(each.forward for each in taken))


def _shape(image: RGB) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
