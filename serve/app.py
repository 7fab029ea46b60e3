"""The application: `serve run serve.app:build model=models:/mst@champion`."""

from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve.api import Handlers, build_api
from serve.registry import pin
from serve.segmenter import Segmenter
from serve.session import Sessions
from serve.settings import ServeSettings
from serve.store import ImageStore

_MAX_HTTP_REQUESTS = 100  # that one ingress replica has in hand; they mostly wait


@serve.ingress()
class Ingress:
    """The deployment that speaks HTTP.

    Args:
        segmenter: the deployment that holds the model.
        settings: of the server.
    """

    def __init__(self, segmenter: DeploymentHandle, settings: ServeSettings) -> None:
        store = ImageStore(Path(settings.image_store))
        sessions = Sessions(settings, store, segmenter.predict.remote)
        self._handlers = Handlers(sessions, segmenter.describe.remote)
        self._max_bytes = settings.max_bytes

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return what answers; Ray Serve calls this once, in the replica."""
        return build_api(self._handlers, self._max_bytes)


def build(settings: ServeSettings) -> Application:
    """Bind the deployment that speaks HTTP to the one that holds the model.

    Raises:
        CheckpointError: there is no such model.
    """
    settings = pin(settings)
    segmenter = serve.deployment(
        name="Segmenter",
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.max_batch,
        },
        max_ongoing_requests=2 * settings.max_batch,
    )(Segmenter)
    ingress = serve.deployment(
        name="Ingress", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=_MAX_HTTP_REQUESTS
    )(Ingress)
    return ingress.bind(segmenter.bind(settings), settings)
