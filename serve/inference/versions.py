"""Which version answers: the one that an alias names, once it is ready; until then the one before it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from mst.errors import MSTError
from serve.errors import UnknownModelError, message_of
from serve.inference.model import Version
from serve.inference.registry import REGISTERED, fallbacks, pin
from serve.settings import ServeSettings
from serve.wire.models import Rejected

_log = logging.getLogger("ray.serve.versions")

Describe = Callable[[str], Awaitable[Version]]
"""Asks the segmenter for a version; it is ready to answer then."""


class Versions:
    """Follows the aliases.

    Args:
        settings: of the server, with the model as it was asked for.
        first: the version that the alias named when the server was set up.
        describe: asks the segmenter for a version.
    """

    def __init__(self, settings: ServeSettings, first: str, describe: Describe) -> None:
        self._settings, self._first, self._describe = settings, first, describe
        self._current: dict[str, Version] = {}
        self._missing: dict[str, tuple[float, UnknownModelError]] = {}  # and when it was asked for last
        self._lock = asyncio.Lock()
        self.rejected: Rejected | None = None

    @property
    def served(self) -> Version | None:
        """The version that answers where a request names no alias; None before the first was ready."""
        return self._current.get(self._settings.model)

    async def of(self, alias: str | None = None) -> Version:
        """Return the version that an alias names; the served one for None.

        Raises:
            UnknownModelError: there is no such alias, requests may not choose it, or its version is broken.
        """
        model = self._settings.model
        if alias is not None:
            if not model.startswith(REGISTERED):
                raise UnknownModelError(f"no alias '{alias}': the model is a folder, not a registered one")
            name, _, served = model.removeprefix(REGISTERED).partition("@")
            if alias not in (served, *self._settings.other_aliases()):
                raise UnknownModelError(f"no alias '{alias}' that a request may choose")
            model = f"{REGISTERED}{name.split('/')[0]}@{alias}"
        if model not in self._current:
            async with self._lock:
                await self._ask(model)
        return self._current[model]

    async def ask_again(self) -> Version:
        """Return the served version, once the segmenter says anew that it is ready.

        Where no model replica need be there, none is asked: it would be started for the question.
        """
        version = await self.of()
        if self._settings.min_replicas:
            await self._describe(version.address)
        return version

    async def follow(self) -> None:
        """Look for new versions from time to time, for ever."""
        with suppress(MSTError, RayError, RayServeException):  # the first request asks again, and says why
            await self.of()
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            for model in list(self._current):
                try:
                    await self._look(model)
                except Exception:  # whatever it is, the version that is served goes on
                    _log.exception("%s cannot be followed", model)

    async def _ask(self, model: str) -> None:
        """Ask for a model for the first time; for one that was not there, once in a while."""
        when, error = self._missing.get(model, (0.0, None))
        if error and time.monotonic() - when < self._settings.poll_seconds:
            raise error
        if model not in self._current:  # another request may have asked meanwhile
            try:
                self._current[model] = await self._start(model)
            except UnknownModelError as error:
                self._missing[model] = time.monotonic(), error
                raise

    async def _start(self, model: str) -> Version:
        try:
            return await self._describe(await self._named(model))
        except MSTError as error:
            if model != self._settings.model:
                raise UnknownModelError(f"{model} cannot be served: {message_of(error)}") from None
            # The alias has moved, since the server was set up, to a version that is broken.
            self.rejected = Rejected(model=model, reason=message_of(error))
        for other in fallbacks(model):
            with suppress(MSTError):
                return await self._describe(await self._named(other))
        return await self._describe(self._first)

    async def _look(self, model: str) -> None:
        address = model
        try:
            address = await self._named(model)
            if address == self._current[model].address:
                rejected = None
            else:
                new = await self._describe(address)
                await asyncio.sleep(self._settings.poll_seconds)  # until all replicas have it too
                self._current[model], rejected = new, None
                _log.info("%s is %s now", model, address)
        except MSTError as error:
            rejected = Rejected(model=address, reason=message_of(error))
            _log.warning("%s stays: %s", self._current[model].address, rejected.reason)
        if model == self._settings.model:
            self.rejected = rejected

    async def _named(self, model: str) -> str:
        pinned = await asyncio.to_thread(pin, self._settings.model_copy(update={"model": model}))
        return pinned.model
