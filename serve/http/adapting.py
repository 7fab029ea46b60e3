"""The routes that adapt the champion to accepted masks: begin, and how far it is."""

import asyncio

from fastapi import FastAPI, HTTPException, Request

from serve.http.keys import Keys, read_keys
from serve.settings import ServeSettings
from serve.state.adapting import Adaptation, Adapting
from serve.wire.limits import Limits, limited
from serve.wire.schemas import AdaptationReply


class AdaptingHandlers:
    """What answers these requests.

    Args:
        adapting: begins adaptations.
        keys: that may; none for all.
    """

    def __init__(self, adapting: Adapting, keys: Keys) -> None:
        self._adapting, self._keys = adapting, keys

    async def begin(self, request: Request) -> AdaptationReply:
        """Adapt the champion to the accepted masks; the registry's gate decides, and the server follows."""
        if self._keys and self._keys.find(dict(request.scope["headers"])) is None:
            raise HTTPException(403, "this key may not adapt")
        return _reply(await asyncio.to_thread(self._adapting.begin))

    @limited(Limits(is_light=True))
    async def last(self) -> AdaptationReply:
        """Return how far the last adaptation is, and what it is worth."""
        return _reply(await asyncio.to_thread(self._adapting.last))


def add_adapting(app: FastAPI, settings: ServeSettings) -> None:
    """Route requests to their handlers."""
    may = Keys(read_keys(settings.adapt_keys, {}), settings.key_rate)
    handlers = AdaptingHandlers(Adapting(settings), may)
    app.add_api_route("/v1/adapt", handlers.begin, methods=["POST"], status_code=202)
    app.add_api_route("/v1/adapt", handlers.last, methods=["GET"])


def _reply(found: Adaptation) -> AdaptationReply:
    return AdaptationReply(state=found.state, name=found.name, lines=[*found.lines])
