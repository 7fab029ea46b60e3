"""Which model is served: a version of the registry, or a checkpoint folder."""

import logging
import os
import re
from pathlib import Path

import mlflow.artifacts
from alembic.util.exc import CommandError
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from mst.checkpoint import CONFIG, WEIGHTS, verify
from mst.databases import check_database, without_password
from mst.errors import CheckpointError, ServerError
from serve.settings import ServeSettings
from serve.wire.models import ModelInfo

_log = logging.getLogger("ray.serve.registry")

SHIPPED = Path(__file__).resolve().parent.parent.parent / "checkpoints" / "mst_small"
"""The model that comes with the project: for a registry without a champion."""

REGISTERED = "models:/"
_CHAMPION, _PREVIOUS = "@champion", "@previous"
"""Aliases that pipelines/promote.py sets: the best version, and the best one before it."""
_CHECKPOINT = "artifacts/checkpoint"
"""Where it lies in an MLflow model, whose code is never run here."""

_UNKNOWN = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""What MLflow calls a model that is not there, and an alias that is not."""


_NO_DATABASE = (SQLAlchemyError, CommandError, ImportError)
"""What MLflow lets through where its database cannot be used: it is none, too new, or lacks a driver."""


def pin(settings: ServeSettings) -> ServeSettings:
    """Settle which model is served: an exact version of an exact registry, or an absolute folder.

    Replicas start at any time and on any machine; whatever has become of the alias, they serve the same.

    Raises:
        CheckpointError: the registry knows no such model.
    """
    if not settings.model.startswith(REGISTERED):
        return settings.model_copy(update={"model": str(Path(settings.model).absolute())})
    settings = settings.model_copy(update={"tracking_uri": registry_of(settings)})
    return settings.model_copy(update={"model": _address(_registered(settings))})


def is_registered(settings: ServeSettings) -> bool:
    """Whether the registry has the registered model of these settings.

    Raises:
        CheckpointError: it cannot be asked.
    """
    try:
        check_database(registry_of(settings))
        _version(settings.model, registry_of(settings))
    except MlflowException as error:
        if error.error_code not in _UNKNOWN:
            raise CheckpointError(f"the registry cannot be asked: {error.message}") from None
        return False
    except (ServerError, *_NO_DATABASE) as error:
        raise CheckpointError(f"the registry cannot be asked: {_first_line(error)}") from None
    return True


def registry_of(settings: ServeSettings) -> str:
    """Return the registry's address; the environment comes before the settings."""
    return os.environ.get("MLFLOW_TRACKING_URI", settings.tracking_uri)


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
    try:
        digests = verify(checkpoint)["sha256"]
    except CheckpointError as error:  # clients are told, whom our folders do not concern
        raise CheckpointError(str(error).replace(str(checkpoint), address)) from None
    for name, tag, what in ((WEIGHTS, "sha256", "weights"), (CONFIG, "config_sha256", "settings")):
        if digests[name] != version.tags.get(tag):
            raise CheckpointError(f"{address}: its {what} are not those that were registered")
    return checkpoint, ModelInfo(name=version.name, version=str(version.version), digest=digests[WEIGHTS])


def fallbacks(model: str) -> list[str]:
    """Return what may be served in the place of a model that an alias names and that is broken."""
    is_champion = model.startswith(REGISTERED) and model.endswith(_CHAMPION)
    return [model.removesuffix(_CHAMPION) + _PREVIOUS] if is_champion else []


def _registered(settings: ServeSettings) -> ModelVersion:
    try:
        return _version(settings.model, settings.tracking_uri)
    except (MlflowException, *_NO_DATABASE) as error:
        # Clients are told, too, whom the registry's address does not concern.
        _log.warning("%s: %s", without_password(settings.tracking_uri), _first_line(error))
        raise CheckpointError(
            f"the registry gives no model '{settings.model}'; train one and register it with "
            "pipelines/promote.py, or run `make demo`"
        ) from None


def _version(model: str, uri: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names."""
    named = re.fullmatch(rf"{REGISTERED}([^/@]+)(?:@(.+)|/(\d+))", model)
    if named is None:
        raise CheckpointError(f"'{model}' is neither models:/NAME@ALIAS nor models:/NAME/VERSION")
    name, alias, number = named.groups()
    client = MlflowClient(uri, uri)
    if number:
        return client.get_model_version(name, number)
    return client.get_model_version_by_alias(name, alias)


def _address(version: ModelVersion) -> str:
    return f"{REGISTERED}{version.name}/{version.version}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
