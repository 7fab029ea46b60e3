"""Which model is served: a version of the registry, or a checkpoint folder."""

import os
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from mst.checkpoint import WEIGHTS, verify
from mst.errors import CheckpointError
from serve.settings import ServeSettings


class ModelInfo(BaseModel):
    """What made a mask."""

    name: str
    version: str
    digest: str
    """sha256 of the weights."""


def fetch_model(settings: ServeSettings, folder: Path) -> tuple[Path, ModelInfo]:
    """Fetch the model that is to be served into `folder`, unless it is a folder already.

    Raises:
        CheckpointError: the registry knows no such model, its files are damaged, or they are not the ones
            that were registered.
    """
    if not settings.model.startswith("models:/"):
        checkpoint = Path(settings.model)
        digest = verify(checkpoint)["sha256"][WEIGHTS]
        return checkpoint, ModelInfo(name=checkpoint.parent.name, version=checkpoint.name, digest=digest)
    uri = os.environ.get("MLFLOW_TRACKING_URI", settings.tracking_uri)
    mlflow.set_tracking_uri(uri)
    name, _, alias = settings.model.removeprefix("models:/").partition("@")
    try:
        version = MlflowClient(uri, uri).get_model_version_by_alias(name, alias)
        exact = f"models:/{name}/{version.version}"
        checkpoint = Path(mlflow.artifacts.download_artifacts(artifact_uri=exact, dst_path=str(folder)))
    except MlflowException as error:
        raise CheckpointError(
            f"no model '{settings.model}' in {uri} ({error.message}); train one and register it with "
            "pipelines/promote.py, or run `make demo`"
        ) from None
    digest = verify(checkpoint)["sha256"][WEIGHTS]
    if digest != version.tags.get("sha256"):
        raise CheckpointError(f"{exact}: its weights are not those that were registered (sha256 {digest})")
    return checkpoint, ModelInfo(name=name, version=str(version.version), digest=digest)
