"""The one function behind every protocol: an image and the clicks on it in, a mask out.

    stored = await core.add_image(data)
    segmentation = await core.segment(stored, [Click(80, 120, True)], Options(threshold=0.5))

`serve.http.api` and each file of `serve.protocols` translate their requests into this call and its answer, or
its error (`serve.errors.status_of`), back; masks are encoded by `serve.wire.encoding`. The answer depends on
the image, the clicks, the options and the model's weights, on nothing else: every call may be repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from mst.clicks import Click, Mask, check_clicks
from mst.data.pixels.images import RGB
from mst.errors import ClickError
from mst.predictor import Prediction
from mst.zoom import Box
from serve.errors import NotKeptError, OverloadedError, UnfinishedError
from serve.inference.model import Selected
from serve.inference.versions import Describe, Versions
from serve.memory import give_back
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.annotations import Annotations
from serve.state.images import Images
from serve.state.known import start_of
from serve.state.room import Room
from serve.state.session import Anticipate, Forward, Progress, Sessions
from serve.state.shared import Others
from serve.state.store import open_store
from serve.wire.models import ModelInfo, Rejected

_TIDY_SECONDS = 60.0
_SWEEP_SECONDS = 600.0  # of all replicas together: a sweep lists the whole store
_READY_SECONDS = 2.0
_AT_ONCE = 4  # objects or images of one request
_THREADS = 32  # for what blocks: decoding, the image store, the registry; Ray's own default is five


T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What can be asked for beside the clicks."""

    threshold: float | None = None
    """Probability above which a pixel belongs to the mask, in (0, 1); None for the model's own."""
    box: Box | None = None
    """Where the object is, half-open and inside the image: it needs no click then."""
    prior: Mask | None = None
    """(H, W), a mask that the clicks correct; none of them need be positive then."""
    alias: str | None = None
    """Which registered model answers; None for the one that is served."""
    tokens: bool = False
    """Whether the answer says which tokens guided the last click."""
    first_look: bool = False
    """Whether the first look at the last click is enough, where the model takes a closer one too."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one extra scale that guided the last click: squares of the image."""

    patch_size: int
    """Side of a token in pixels of the network's input."""
    boxes: tuple[Box, ...]
    """In pixels of the image, half-open, rounded; the most similar first."""
    scores: tuple[float, ...]
    """Similarity to the clicked tokens (MST eq. 3), one for each box."""


@dataclass(frozen=True)
class StoredImage:
    """An image that calls can name by its id."""

    image_id: str
    """sha256 of the file."""
    pixels: RGB
    """(H, W, 3), upright."""


@dataclass(frozen=True)
class Segmentation:
    """The answer to a list of clicks."""

    image_id: str
    mask: Mask
    """(H, W)."""
    prediction: Prediction
    """Its probabilities, and what the last forward looked at."""
    box: Box | None
    """The mask's bounding box, half-open; None for an empty mask."""
    score: float
    """The IoU that the mask would have, were the probabilities right (`Prediction.score`): 0 .. 1."""
    model: ModelInfo
    """Which version made it."""
    tokens: tuple[Tokens, ...]
    """What each fusion module chose for the last click; empty unless it was asked for."""
    model_seconds: float
    """Waiting for the model, and its forwards; 0 where the prediction was known already."""
    forward_seconds: float = 0.0
    """The forwards alone."""
    is_final: bool = True
    """Whether it is the answer; false for a first look, where the model takes a closer one too."""


class Core:
    """Images and predictions of one HTTP replica.

    Args:
        settings: of the server, with the model as it was asked for.
        first: the version that it named when the server was set up.
        describe: asks the segmenter for a version.
        forward: calls the segmenter's model.
        metrics: what is counted and timed.
        anticipate: tells the segmenter what it will be asked about; None where it need not know.
        others: HTTP replicas; None where there are none.
    """

    def __init__(
        self,
        settings: ServeSettings,
        first: str,
        describe: Describe,
        forward: Forward,
        metrics: Metrics,
        anticipate: Anticipate | None = None,
        others: Others | None = None,
    ) -> None:
        store = open_store(settings.image_store, settings.image_seconds, settings.image_bytes)
        self.room = Room(settings.pixels_in_hand)
        self._images = Images(settings, store, metrics, self.room)
        self.adapts = bool(settings.annotation_store and settings.adapt_runs)
        self._annotations = Annotations(settings.annotation_store) if settings.annotation_store else None
        self._sessions = Sessions(settings, forward, metrics, anticipate, others)
        self._versions = Versions(settings, first, describe)
        self._deadline = settings.deadline_seconds
        self.metrics = metrics

    async def add_image(self, data: bytes) -> StoredImage:
        """Store an image file.

        Raises:
            ImageTooLargeError: more pixels than the settings allow.
            ImageError: the bytes are no image, or a broken one.
        """
        async with self._in_time():
            image_id, pixels = await self._images.add(data)
        if (version := self._versions.served) is not None:
            self._sessions.anticipate(image_id, pixels, version)
        return StoredImage(image_id, pixels)

    async def image(self, image_id: str) -> StoredImage:
        """Return a stored image.

        Raises:
            UnknownImageError: there is none of this id.
        """
        async with self._in_time():
            pixels = await self._images.get(image_id)
        return StoredImage(image_id, pixels)

    async def image_file(self, image_id: str) -> tuple[bytes, str]:
        """Return a stored image's file, and the suffix of its format.

        Raises:
            UnknownImageError: there is none of this id.
        """
        async with self._in_time():
            return await self._images.file(image_id)

    @property
    def keeps_annotations(self) -> bool:
        """Whether masks that are accepted are kept."""
        return self._annotations is not None

    def annotations(self) -> Annotations:
        """Return the accepted masks.

        Raises:
            NotKeptError: this server keeps none.
        """
        if self._annotations is None:
            raise NotKeptError("this server keeps no annotations; start it with --annotation-store FOLDER")
        return self._annotations

    async def model(self) -> ModelInfo:
        """Return which model is served; whether it can answer right now is not asked."""
        return (await self._versions.of()).info

    async def ready(self) -> tuple[ModelInfo, Rejected | None]:
        """Ask the segmenter, anew, whether it can answer; say with which model, and which is rejected.

        Raises:
            OverloadedError: it does not say so within two seconds.
        """
        async with self._in_time(_READY_SECONDS):
            version = await self._versions.ask_again()
        return version.info, self._versions.rejected

    def metrics_text(self) -> bytes:
        """Counts and times, as Prometheus reads them."""
        if (served := self._versions.served) is not None:
            self.metrics.serves(served.info)
        return self.metrics.text()

    async def segment(
        self, image: StoredImage, clicks: Sequence[Click], options: Options | None = None
    ) -> Segmentation:
        """Return the mask of the object that the clicks mean.

        Several objects of an image are several calls at once (`asyncio.gather`): their forwards are batched.

        Args:
            image: what the clicks are on.
            clicks: the whole list, in pixels of the upright image: row 0 and col 0 are the top left pixel.
            options: threshold, box, prior mask and model.

        Raises:
            ClickError: no positive click, or one outside the image; a box or a prior mask that does not fit.
            UnknownModelError: no model has the alias.
            OverloadedError: it cannot be answered in time; `retry_after` says when to try again.
            UnfinishedError: so many clicks take longer; the same call goes on after those that are done.
        """
        progress = Progress(of=len(clicks))
        async with self._in_time(progress=progress):
            return await self._segment(image, clicks, options or Options(), progress)

    @asynccontextmanager
    async def _in_time(
        self, seconds: float | None = None, progress: Progress | None = None
    ) -> AsyncIterator[None]:
        """Give a block up that takes longer than the deadline, and say how far it came."""
        seconds = seconds or self._deadline
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            if progress and progress.clicks:
                raise UnfinishedError(seconds, progress.clicks, progress.of) from None
            raise OverloadedError(f"no answer within {seconds:g} s") from None

    async def _segment(
        self, image: StoredImage, clicks: Sequence[Click], options: Options, progress: Progress
    ) -> Segmentation:
        height, width = image.pixels.shape[:2]
        _check(clicks, options, height, width)
        version = await self._versions.of(options.alias)
        start = start_of(options.prior, options.box, height, width)
        found, seconds = await self._sessions.predict(
            image.image_id, image.pixels, clicks, version, start, progress, first_look=options.first_look
        )
        prediction = found.prediction
        if found.is_final:
            self._sessions.anticipate(image.image_id, image.pixels, version, prediction)
        threshold = version.eval.threshold if options.threshold is None else options.threshold
        with self.metrics.stage("score"):
            mask, extent, score = await asyncio.to_thread(_seen_at, prediction, threshold)
        seen = prediction.box or Box(0, 0, height, width)
        chosen = found.selected if options.tokens else ()
        return Segmentation(
            image_id=image.image_id,
            mask=mask,
            prediction=prediction,
            box=extent,
            score=score,
            model=version.info,
            tokens=tuple(_tokens(each, seen, version.image_size) for each in chosen),
            model_seconds=seconds.model,
            forward_seconds=seconds.forward,
            is_final=found.is_final,
        )

    async def keep(self) -> None:
        """Follow the aliases, sweep the store and the heap, for ever; give this loop threads enough."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "serve"))
        await asyncio.gather(self._versions.follow(), self._tidy())

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            await asyncio.to_thread(give_back)
            try:
                await asyncio.to_thread(self._images.sweep, _SWEEP_SECONDS)
            except (OSError, OverloadedError):  # the store is away; it is swept when it is back
                self.metrics.failed_sweep()


async def few_at_once(calls: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """Return what calls for several objects or images of one request answer, in their order.

    Some run at once, to share the model's batches; not all, as each may hold a large image. The first that
    fails ends the others.
    """
    limit = asyncio.Semaphore(_AT_ONCE)

    async def answer(call: Callable[[], Awaitable[T]]) -> T:
        async with limit:
            return await call()

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(call)) for call in calls]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _check(clicks: Sequence[Click], options: Options, height: int, width: int) -> None:
    """Refuse what no mask can be predicted from."""
    box, prior, threshold = options.box, options.prior, options.threshold
    check_clicks(clicks, height, width, needs_positive=box is None and prior is None)
    if not clicks and box is None:
        raise ClickError("at least one click is needed to correct a mask")
    if box and not (0 <= box.top < box.bottom <= height and 0 <= box.left < box.right <= width):
        raise ClickError(f"the box must hold pixels of the image, which is {width} x {height} pixels")
    if prior is not None and prior.shape != (height, width):
        raise ClickError(f"the mask has {prior.shape[1]} x {prior.shape[0]} pixels, not {width} x {height}")
    if threshold is not None and not 0 < threshold < 1:
        raise ClickError("the threshold must lie between 0 and 1")


def _seen_at(prediction: Prediction, threshold: float) -> tuple[Mask, Box | None, float]:
    return prediction.mask(threshold), prediction.extent(threshold), prediction.score(threshold)


def _tokens(chosen: Selected, seen: Box, size: int) -> Tokens:
    """Selected tokens as squares of the image."""
    rows, cols = np.divmod(chosen.indices, chosen.columns)
    corners = np.stack([rows, cols, rows + 1, cols + 1], 1) * (chosen.patch_size / size)
    scale, origin = [seen.height, seen.width] * 2, [seen.top, seen.left] * 2
    boxes = np.rint(corners * scale + origin).astype(int)
    scores = tuple(round(float(each), 4) for each in chosen.scores)
    return Tokens(chosen.patch_size, tuple(Box(*each) for each in boxes.tolist()), scores)
