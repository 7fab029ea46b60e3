"""Which model is served: a version of the registry, or a checkpoint folder."""

import os
import re
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from mst.checkpoint import WEIGHTS, verify
from mst.errors import CheckpointError
from serve.settings import ServeSettings

REGISTERED = "models:/"
_CHECKPOINT = "artifacts/checkpoint"
"""Where it lies in an MLflow model, whose code is never run here."""


class ModelInfo(BaseModel):
    """What made a mask."""

    name: str
    version: str
    digest: str
    """sha256 of the weights."""


def pin(settings: ServeSettings) -> ServeSettings:
    """Settle which model is served: an exact version of an exact registry, or an absolute folder.

    Replicas start at any time and on any machine; whatever has become of the alias, they serve the same.

    Raises:
        CheckpointError: the registry knows no such model.
    """
    if not settings.model.startswith(REGISTERED):
        return settings.model_copy(update={"model": str(Path(settings.model).absolute())})
    uri = os.environ.get("MLFLOW_TRACKING_URI", settings.tracking_uri)
    settings = settings.model_copy(update={"tracking_uri": uri})
    return settings.model_copy(update={"model": _address(_registered(settings))})


def fetch_model(settings: ServeSettings, folder: Path) -> tuple[Path, ModelInfo]:
    """Fetch the model of pinned settings into `folder`, unless it is a folder already.

    Raises:
        CheckpointError: the registry knows no such model, its files are damaged, or they are not the ones
            that were registered.
    """
    if not settings.model.startswith(REGISTERED):
        checkpoint = Path(settings.model)
        digest = verify(checkpoint)["sha256"][WEIGHTS]
        return checkpoint, ModelInfo(name=checkpoint.parent.name, version=checkpoint.name, digest=digest)
    version = _registered(settings)
    mlflow.set_tracking_uri(settings.tracking_uri)
    address = _address(version)
    is_packaged = any(each.path == "MLmodel" for each in mlflow.artifacts.list_artifacts(address))
    inside = f"{address}/{_CHECKPOINT}" if is_packaged else address
    checkpoint = Path(mlflow.artifacts.download_artifacts(inside, dst_path=str(folder)))
    digest = verify(checkpoint)["sha256"][WEIGHTS]
    if digest != version.tags.get("sha256"):
        raise CheckpointError(f"{address}: its weights are not those that were registered (sha256 {digest})")
    return checkpoint, ModelInfo(name=version.name, version=str(version.version), digest=digest)


def _registered(settings: ServeSettings) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names."""
    named = re.fullmatch(rf"{REGISTERED}([^/@]+)(?:@(.+)|/(\d+))", settings.model)
    if named is None:
        raise CheckpointError(f"'{settings.model}' is neither models:/NAME@ALIAS nor models:/NAME/VERSION")
    name, alias, number = named.groups()
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    try:
        if number:
            return client.get_model_version(name, number)
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        raise CheckpointError(
            f"no model '{settings.model}' in {settings.tracking_uri} ({error.message}); train one and "
            "register it with pipelines/promote.py, or run `make demo`"
        ) from None


def _address(version: ModelVersion) -> str:
    return f"{REGISTERED}{version.name}/{version.version}"
