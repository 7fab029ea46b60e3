"""The deployment that holds the model: batched forwards of fixed-size inputs, without any state.

A replica holds the version that the alias names, and some others: one that was just replaced and is still
asked for, and those of further aliases. It follows the alias by itself, so that a new version is ready before
the first click on it; one that cannot be loaded, or whose trial fails, is left aside and tried again later.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch

from mst.data.pixels.images import RGB
from mst.errors import MSTError
from mst.predictor import Crop
from serve.inference.batching import Batcher
from serve.inference.model import Answer, ServedModel, Version
from serve.inference.registry import fallbacks, pin
from serve.settings import ServeSettings

_log = logging.getLogger("ray.serve.segmenter")

_HUNG = 2  # deadlines of a request, after which a forward hangs
_AGAIN = 60.0  # seconds after which a version that could not be loaded is tried again


class _Call(NamedTuple):
    model: ServedModel
    crop: Crop

    def shape(self) -> tuple[int, int]:
        """What calls that share a forward have in common."""
        return id(self.model), self.crop.side


class Segmenter:
    """Answers crops with logits.

    Args:
        settings: of the server, with the model as it was asked for.
        first: the version that the alias named when the server was set up; what is served where the one
            that it names now is broken.

    Raises:
        CheckpointError: there is no such model, or its files are damaged.
    """

    def __init__(self, settings: ServeSettings, first: str) -> None:
        torch.set_num_threads(settings.threads())
        _log.info("the model runs on %d threads", settings.threads())
        self._settings = settings
        self._models: dict[str, ServedModel] = {}
        self._used: dict[str, float] = {}  # when each was asked for last
        self._failed: dict[str, tuple[float, MSTError]] = {}
        self._lock = threading.Lock()  # one model is loaded at a time
        self._batcher: Batcher[_Call, Answer] = Batcher(_run, settings.max_batch, _Call.shape)
        self._start(first)
        self._closed = threading.Event()
        self._follower = threading.Thread(target=self._follow, daemon=True)
        if settings.model != first:
            self._follower.start()

    def check_health(self) -> None:
        """Tell Ray Serve, which asks from time to time and replaces a replica that is ill.

        Raises:
            RuntimeError: a forward hangs, or forwards fail one after the other, as on a GPU that is lost.
        """
        self._batcher.check(_HUNG * self._settings.deadline_seconds)

    def close(self) -> None:
        """Follow the alias no longer; the end of a replica's process does as much."""
        self._closed.set()
        if self._follower.is_alive():
            self._follower.join()

    def _start(self, first: str) -> None:
        """Load what the alias names; where that is broken, what else may be served."""
        for model in (self._settings.model, *fallbacks(self._settings.model)):
            try:
                self._model(pin(self._settings.model_copy(update={"model": model})).model)
            except MSTError as error:
                _log.warning("%s: %s", model, error)
            else:
                return
        self._model(first)

    async def describe(self, address: str) -> Version:
        """Return what callers must know of a version, which is ready to answer then.

        Raises:
            CheckpointError: it cannot be served.
        """
        return (await self._ready(address)).version

    async def predict(self, address: str, crop: Crop) -> Answer:
        """Return what a version says of a crop; calls that wait for the model share a forward.

        Raises:
            CheckpointError: it cannot be served.
        """
        return await self._batcher(_Call(await self._ready(address), crop))

    async def anticipate(self, address: str, image: RGB) -> None:
        """Encode a crop (S, S, 3) that will be asked about, once no call waits.

        Raises:
            CheckpointError: the version cannot be served.
        """
        model = await self._ready(address)
        self._batcher.offer(partial(model.encode, image))

    async def _ready(self, address: str) -> ServedModel:
        self._used[address] = time.monotonic()
        model = self._models.get(address)
        return await asyncio.to_thread(self._model, address) if model is None else model

    def _model(self, address: str) -> ServedModel:
        with self._lock:
            if address in self._models:
                return self._models[address]
            when, error = self._failed.get(address, (0.0, None))
            if error and time.monotonic() - when < _AGAIN:
                raise error
            try:
                model = _load(self._settings.model_copy(update={"model": address}))
            except MSTError as error:
                self._failed[address] = time.monotonic(), error
                raise
            self._used[address] = time.monotonic()
            while len(self._models) >= self._settings.max_models:
                del self._models[min(self._models, key=lambda each: self._used.get(each, 0.0))]
            self._models[address] = model
            return model

    def _follow(self) -> None:
        while not self._closed.wait(self._settings.poll_seconds):
            try:
                self._model(pin(self._settings).model)
            except Exception as error:  # whatever it is, the version that is served goes on
                _log.warning("%s cannot be followed: %s", self._settings.model, error)


def _load(settings: ServeSettings) -> ServedModel:
    """Load a model in a thread that ends with that.

    Each thread that runs a forward has a pool of OpenMP's threads for as long as it lives. Once all pools
    together have more threads than there are cores, libgomp lets those that wait for work sleep rather than
    spin, and wakes them a thousand times in each later forward, which then takes up to 1.6 times as long.
    """
    with ThreadPoolExecutor(1, "load") as thread:
        return thread.submit(ServedModel, settings).result()


def _run(calls: Sequence[_Call]) -> list[Answer]:
    return calls[0].model.answer([call.crop for call in calls])
