"""The application: `serve run serve.app:build model=models:/mst@champion`."""

import asyncio
import os
from functools import partial

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from mst.predictor import Crop
from serve.http.api import build_api
from serve.http.gate import Door
from serve.http.keys import Keys, read_keys
from serve.inference.model import Answer
from serve.inference.registry import REGISTERED, pin
from serve.inference.segmenter import Segmenter
from serve.memory import MALLOC, MALLOC_OF_MODEL
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.state.core import Core
from serve.state.shared import Others, Shared
from serve.state.store import check_shared, name_of

_LIGHT_REQUESTS = 100  # beside those that `max_requests` counts: probes, and those that are refused
_RETRY_AFTER = {"retry_after_s": 1}
_LOGGING = {"encoding": "JSON", "enable_access_log": False}


@serve.ingress()
class Ingress:
    """The deployment that speaks HTTP.

    Args:
        segmenter: the deployment that holds the model.
        settings: of the server, with the model as it was asked for.
        first: the version that it named when the server was set up.
        store: the name of the image store that the server was set up with.
        shared: the deployment that tells HTTP replicas of each other's predictions; None for one replica.

    Raises:
        ConfigError: the image store is a folder of this node alone, of several.
    """

    def __init__(
        self,
        segmenter: DeploymentHandle,
        settings: ServeSettings,
        first: str,
        store: str,
        shared: DeploymentHandle | None,
    ) -> None:
        if sum(node["Alive"] for node in ray.nodes()) > 1:
            check_shared(settings.image_store, store)
        metrics = Metrics(serve.get_replica_context().replica_tag)
        forward = partial(_forward, segmenter)
        # With several replicas, the next click may go to another one than was told of it.
        anticipate = segmenter.anticipate.remote if settings.max_replicas == 1 else None
        others = Others(shared.find.remote, shared.tell.remote) if shared else None
        self._core = Core(settings, first, segmenter.describe.remote, forward, metrics, anticipate, others)
        self._settings = settings
        self._door = Door()
        self._keys = Keys(read_keys(settings.api_keys, os.environ), settings.key_rate)

    async def drain(self) -> int:
        """Take no more requests, and return how many are in hand."""
        self._door.is_closed = True
        return self._door.in_hand

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return what answers; Ray Serve calls this once, in the replica."""
        return build_api(self._core, self._settings, self._keys, self._door)


async def _forward(segmenter: DeploymentHandle, address: str, crop: Crop) -> Answer:
    """Ask the segmenter; a call that is given up is taken out of its queue."""
    response = segmenter.predict.remote(address, crop)
    try:
        answer: Answer = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    return answer


def settle(settings: ServeSettings) -> tuple[ServeSettings, str]:
    """Settle which registry is asked, and which version the model's alias names at first.

    Returns:
        The settings for all replicas, which follow the alias where there is one, and the version's address.

    Raises:
        CheckpointError: there is no such model.
    """
    pinned = pin(settings)
    follows = settings.model.startswith(REGISTERED) and "@" in settings.model
    model = settings.model if follows else pinned.model
    return pinned.model_copy(update={"model": model}), pinned.model


def build(settings: ServeSettings) -> Application:
    """Bind the deployment that speaks HTTP to the one that holds the model.

    Raises:
        CheckpointError: there is no such model.
    """
    settings, first = settle(settings)
    segmenter = serve.deployment(
        name="Segmenter",
        ray_actor_options={
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
            "runtime_env": {"env_vars": MALLOC_OF_MODEL},
        },
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.max_batch,
            "upscale_delay_s": settings.upscale_delay_seconds,
            "downscale_delay_s": settings.downscale_delay_seconds,
        },
        # Calls wait in the replica, where the first to come is the first to be run: Serve's own queue in the
        # caller, which fills when a replica takes no more, tries again after pauses, and some wait for long.
        max_ongoing_requests=max(2 * settings.max_batch, settings.http_replicas * settings.max_requests),
        max_surge_percent=100,  # of new code: the new replicas first, then the old ones go
        logging_config=_LOGGING,
    )(Segmenter)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=settings.http_replicas,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": MALLOC}},
        max_ongoing_requests=settings.max_requests + _LIGHT_REQUESTS,
        max_queued_requests=settings.max_requests + _LIGHT_REQUESTS,
        backpressure_config=_RETRY_AFTER,
        max_surge_percent=100,
        logging_config=_LOGGING,
    )(Ingress)
    shared = serve.deployment(
        name="Shared", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000, logging_config=_LOGGING
    )(Shared)
    has_others = settings.http_replicas > 1
    return ingress.bind(
        segmenter.bind(settings, first),
        settings,
        first,
        name_of(settings.image_store),
        shared.bind(settings.cache_bytes // 4) if has_others else None,
    )
