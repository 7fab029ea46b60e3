"""Paths that outlive a process: where runs are stored, and what they read."""

import os
from pathlib import Path

from upath import UPath

from mst.config import Config
from mst.data.files import as_path
from mst.errors import ConfigError
from mst.model.weights import HUB

PROJECT = Path(__file__).resolve().parent.parent


def absolute(path: str) -> str:
    """Make a path absolute, for workers whose working directory is another.

    Raises:
        ConfigError: the path is no local one; or it is relative, and this is the copy of the project that a
            Ray job runs in.
    """
    if "://" in path:
        raise ConfigError(f"'{path}' is no path of a local or mounted folder")
    if not Path(path).is_absolute():
        check_outlives_job(f"the path '{path}' is relative")
    return os.path.normpath(Path(path).absolute())


def run_folder(storage: str, name: str) -> UPath:
    """Return the folder of a run: in a local or mounted folder, or in a store as `s3://bucket/runs`.

    Raises:
        ConfigError: as `absolute`.
    """
    return as_path(storage if "://" in storage else absolute(storage)) / name


def check_outlives_job(what: str) -> None:
    """Refuse to store beside this file when Ray will delete it with the job.

    Raises:
        ConfigError: this is a job's copy of the project; `what` begins the message.
    """
    if "runtime_resources" in PROJECT.parts:
        raise ConfigError(
            f"{what}, but a Ray job runs in a copy of the project that Ray deletes; name a place outside it"
        )


def absolute_paths(config: Config) -> Config:
    """Return a config all of whose paths are absolute; a data root may lie in a store."""
    root, cache = config.data.root, config.data.cache
    data = config.data.model_copy(
        update={"root": root if "://" in root else absolute(root), "cache": cache and absolute(cache)}
    )
    init, features = config.train.init, config.train.features_cache
    if init and not init.startswith(HUB):
        init = absolute(init)
    train = config.train.model_copy(update={"init": init, "features_cache": features and absolute(features)})
    return config.model_copy(update={"data": data, "train": train})
