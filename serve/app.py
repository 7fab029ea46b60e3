"""The application: `serve run serve.app:build model=models:/mst@champion`."""

from ray import serve
from ray.serve import Application

from serve.api import Api
from serve.segmenter import Segmenter
from serve.settings import ServeSettings


def build(settings: ServeSettings) -> Application:
    """Bind the deployment that speaks HTTP to the one that holds the model."""
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
    api = serve.deployment(name="Api", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100)(Api)
    return api.bind(segmenter.bind(settings), settings)
