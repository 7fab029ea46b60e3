"""From an image and a list of clicks to a prediction, by way of the segmenter.

Nothing here is needed to answer a request but the request itself: an image that is no longer in memory is
read again, and a prediction that is not known any more is replayed click by click, with the same result.
"""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from mst.clicks import Click
from mst.data.pixels.images import RGB, UPLOADED, decode_image, opened
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
from serve.state.room import Room
from serve.state.shared import Others
from serve.state.store import ImageStore

Forward = Callable[[str, Crop], Awaitable[Answer]]
"""Asks a version, by its address, for what it says of a crop."""

Anticipate = Callable[[str, RGB], Awaitable[None]]
"""Tells a version, by its address, of pixels of a crop (S, S, 3) that it will be asked about."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two tries of a call whose replica died
_TOLD_AT_ONCE = 4  # crops that the model is being told of
_OTHERS_SECONDS = 0.5  # that a click waits at most for what other replicas know
_DECODERS = 4  # images that are decoded at once: it is memory that they compete for


class Found(NamedTuple):
    """The object after some clicks, and what the model chose for the last one."""

    prediction: Prediction
    selected: tuple[Selected, ...]


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
    """Images and predictions of one HTTP replica.

    Args:
        settings: of the server.
        store: of all replicas.
        forward: calls the model.
        metrics: what is counted and timed.
        room: for the images of all requests.
        anticipate: tells the model what comes; None where it need not know.
        others: HTTP replicas; None where there are none.
    """

    def __init__(
        self,
        settings: ServeSettings,
        store: ImageStore,
        forward: Forward,
        metrics: Metrics,
        room: Room,
        anticipate: Anticipate | None = None,
        others: Others | None = None,
    ) -> None:
        self._settings, self._store, self._forward, self._metrics = settings, store, forward, metrics
        self._room = room
        self._images: ByteLRU[str, RGB] = ByteLRU(settings.cache_bytes)
        self._crops: ByteLRU[tuple[str, int, Box | None], Crop] = ByteLRU(settings.cache_bytes // 8)
        self._known: ByteLRU[_Key, Known] = ByteLRU(settings.cache_bytes // 4)
        self._pasted: ByteLRU[_Key, Prediction] = ByteLRU(settings.cache_bytes)
        self._flights: Flights[_Key, tuple[Found, Seconds]] = Flights()
        self._tell, self._telling = anticipate, set[asyncio.Task[None]]()
        self._others, self._sharing = others, set[asyncio.Task[None]]()
        self._load = Load(settings.queue_seconds, settings.max_batch)
        metrics.watch_queue(lambda: self._load.calls)
        self._decoders = asyncio.Semaphore(_DECODERS)

    async def add_image(self, data: bytes) -> tuple[str, RGB]:
        """Decode and store an image.

        Returns:
            Its id and pixels.

        Raises:
            ImageTooLargeError: more pixels than the settings allow.
            ImageError: the bytes are no image, or a broken one.
        """
        image_id = hashlib.sha256(data).hexdigest()
        image = await self._from_memory(image_id)
        if image is None:
            image = await self._decode(data)
        await asyncio.to_thread(self._store.put, data)
        self._images.put(image_id, image, image.nbytes)
        return image_id, image

    async def image(self, image_id: str) -> RGB | None:
        """Return an image's pixels; None where it was never stored."""
        image = await self._from_memory(image_id)
        self._metrics.cache("image", image is not None)
        if image is None:
            data = await asyncio.to_thread(self._store.get, image_id)
            if data is None:
                return None
            image = await self._decode(data)
            self._images.put(image_id, image, image.nbytes)
        return image

    async def predict(
        self,
        image_id: str,
        image: RGB,
        clicks: Sequence[Click],
        version: Version,
        start: Start = NOTHING,
        progress: Progress | None = None,
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

        Returns:
            The prediction, and what the model took.
        """
        taken: list[Seconds] = []
        about = image_id, f"{version.address} {version.info.digest}", start.key
        given = (*start.clicks, *clicks)
        done = await self._longest_known(about, given)
        self._metrics.cache("prediction", done == len(given))
        found, progress = Found(start.prediction, ()) if start.prediction else None, progress or Progress()
        for number in range(max(done, len(start.clicks), 1), len(given) + 1):
            key = about, given[:number]
            if (known := self._known.get(key)) is not None:
                found = await self._paste(key, known, image)
            else:
                previous = found.prediction if found else None
                found, seconds = await self._flights.join(
                    key, partial(self._predict_click, key, image, previous, version)
                )
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

    def sweep(self, seconds: float) -> None:
        """Delete what the store keeps no longer, unless a replica has done so within so many seconds."""
        if self._store.is_to_be_swept(seconds):
            self._store.sweep()

    async def _predict_click(
        self, key: _Key, image: RGB, previous: Prediction | None, version: Version
    ) -> tuple[Found, Seconds]:
        """Run the forwards of the last of the clicks, and keep what comes of them."""
        (about, clicks), taken = key, []
        for _ in range(forwards_of_click(previous, version.eval)):
            known, seconds = await self._forward_once(about[0], image, clicks, previous, version)
            with self._stage("paste"):
                previous = await asyncio.to_thread(known.paste, _shape(image))
            taken.append(seconds)
        assert previous is not None  # there is at least one forward
        self._known.put(key, known, known.bytes)
        if self._others is not None:
            _in_background(_share(self._others, about, known), self._sharing)
        self._pasted.put(key, previous, previous.seen.nbytes)
        return Found(previous, known.selected), _total(taken)

    async def _paste(self, key: _Key, known: Known, image: RGB) -> Found:
        """Return a prediction that is known, made anew where there was no room for it."""
        prediction = self._pasted.get(key)
        if prediction is None:
            with self._stage("paste"):
                prediction = await asyncio.to_thread(known.paste, _shape(image))
            self._pasted.put(key, prediction, prediction.seen.nbytes)
        return Found(prediction, known.selected)

    async def _forward_once(
        self,
        image_id: str,
        image: RGB,
        clicks: tuple[Click, ...],
        previous: Prediction | None,
        version: Version,
    ) -> tuple[Known, Seconds]:
        """Run one forward for the last of the clicks."""
        with self._stage("prepare"):
            crop = await asyncio.to_thread(self._next_crop, image_id, image, clicks, previous, version)
        began = time.perf_counter()
        with self._stage("model"), self._load.waiting():
            answer = await self._call(version.address, crop)
        waited = time.perf_counter() - began
        self._metrics.forward(answer.batch, answer.seconds)
        known = Known(clicks, crop.box, crop.side, answer.logits, answer.selected)
        return known, Seconds(waited, answer.seconds)

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

    async def _from_memory(self, image_id: str) -> RGB | None:
        if (image := self._images.get(image_id)) is not None:
            await self._room.take(image.shape[0] * image.shape[1])
        return image

    async def _decode(self, data: bytes) -> RGB:
        await self._room.take(await asyncio.to_thread(self._pixels_of, data))
        async with self._decoders:
            with self._stage("decode"):
                return await asyncio.to_thread(
                    decode_image, data, max_pixels=self._settings.max_pixels, formats=UPLOADED
                )

    def _pixels_of(self, data: bytes) -> int:
        """How many pixels an image's header claims."""
        with opened(data, "image", self._settings.max_pixels, UPLOADED) as header:
            return int(header.width * header.height)

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
