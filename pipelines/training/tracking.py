"""MLflow: one run for each training. `pipelines/registry/versions.py` has the registered model."""

import logging
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.time import get_current_time_millis
from upath import UPath

from mst.checkpoint import copy_for_use
from mst.config import Config
from mst.data.pixels.images import RGB
from mst.databases import check_database, without_password
from mst.errors import ServerError
from mst.overrides import flatten
from mst.training.checkpoints import Saved, on_this_machine
from pipelines.storage import PROJECT, absolute, check_outlives_job
from pipelines.training.provenance import LONGEST_TAG, provenance

if TYPE_CHECKING:  # it would bring plots and pages into every worker
    from mst.evaluation.report import Evaluation

EXPERIMENT = "mst"

_RUN_FOLDER = "mst.run_folder"  # tag by which a restarted training finds its run again
_CHECKPOINTS = "checkpoints"
_MAX_PARAM_LENGTH = 6000
_METRIC_NAME = re.compile(r"[^\w\-. /]")  # what a name of a metric cannot have
_MOST_METRICS = 1000  # of a request
_LONGEST_MESSAGE = 300
_TABLES = frozenset({"alembic_version", "experiments", "runs"})  # of which MLflow's databases have some
_PATIENCE = 10.0  # seconds that a server has to say that it is there

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


class TrackedRun(NamedTuple):
    """A run on a tracking server; plain text, so that it travels to workers."""

    uri: str
    run_id: str

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        now = get_current_time_millis()
        points = [Metric(name, value, now, step) for name, value in metrics.items()]
        self.client().log_batch(self.run_id, metrics=points)

    def log_checkpoint(self, checkpoint: UPath) -> str:
        """Keep a checkpoint with the run, ready for use, and return its address."""
        path = f"{_CHECKPOINTS}/{checkpoint.name}"
        if not self.client().list_artifacts(self.run_id, path):
            with on_this_machine(checkpoint) as folder, tempfile.TemporaryDirectory() as copied:
                copy_for_use(folder, Path(copied))
                self.client().log_artifacts(self.run_id, copied, path)
        return f"runs:/{self.run_id}/{path}"

    def log_picture(self, picture: RGB, name: str, step: int) -> None:
        """Add a picture to the ones of this name, which the UI shows by step."""
        self.client().log_image(self.run_id, picture, key=name, step=step)

    def go_on(self, config: Config, step: int, changed: Sequence[str]) -> None:
        """Go on with the run, and say what else it goes on with than it began with.

        Args:
            config: of the experiment.
            step: that the training goes on from.
            changed: a line for each setting that is another now.
        """
        client = self.client()
        client.update_run(self.run_id, status="RUNNING")
        began = client.get_run(self.run_id).data.tags
        made_from = [
            f"{name}: {began.get(name)} -> {value}"
            for name, value in provenance(config).items()
            if began.get(name) != value
        ]
        if text := "; ".join([*changed, *made_from]):
            client.set_tag(self.run_id, f"changed_after_step_{step}", text[:LONGEST_TAG])

    def is_finished(self) -> bool:
        """Whether the run ended well."""
        return bool(self.client().get_run(self.run_id).info.status == "FINISHED")

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.client().set_terminated(self.run_id, status)

    def client(self) -> MlflowClient:
        """Open a client of the run's server."""
        return MlflowClient(self.uri, self.uri)


def tracking_uri() -> str:
    """Return `MLFLOW_TRACKING_URI`, or the database in this checkout's `mlruns/`.

    Raises:
        ConfigError: the variable is not set in a Ray job, where the checkout is a copy that goes away.
        ServerError: it names a server that does not answer or does not let us in, or a database that cannot
            be opened.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        relative = re.fullmatch(r"sqlite:///(?!/)(.+)", uri)  # would be another file for each worker
        uri = f"sqlite:///{absolute(relative[1])}" if relative else uri
        check_server(uri)
        return uri
    check_outlives_job("MLFLOW_TRACKING_URI is not set")
    folder = PROJECT / "mlruns"
    folder.mkdir(exist_ok=True)
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    check_server(uri)
    return uri


def check_server(uri: str) -> None:
    """Refuse a tracking server or database that cannot be used, before anything is begun.

    MLflow asks a server that is away again and again for some minutes. That is right in the middle of a
    training, and not for a wrong address. A new database is set up here, by one process: two that begin it at
    once get into each other's way.

    Raises:
        ServerError: it does not answer, does not let us in, or cannot be opened.
    """
    if uri.startswith(("http://", "https://")):
        _check_health(uri)
    else:
        check_database(uri, _TABLES)
    from alembic.util.exc import CommandError  # a second that workers need not spend  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    with plainly(uri):
        try:
            MlflowClient(uri, uri).get_experiment_by_name(EXPERIMENT)
        except (SQLAlchemyError, CommandError, ImportError, ValueError) as error:
            raise ServerError(f"MLflow at {without_password(uri)}: {_first_line(error)}") from None


def _check_health(uri: str) -> None:
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=_PATIENCE).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerError(
            f"no MLflow server answers at {without_password(uri)} ({error}); start it (docs/registry.md), or "
            "set MLFLOW_TRACKING_URI to another"
        ) from None


@contextmanager
def plainly(uri: str) -> Iterator[None]:
    """Let what a tracking server refuses, or does not answer, be an error of ours.

    Raises:
        ServerError: see above.
    """
    try:
        yield
    except MlflowException as error:
        hint = "; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if _is_login(error) else ""
        raise ServerError(f"MLflow at {without_password(uri)}: {_first_line(error.message)}{hint}") from error


def _is_login(error: MlflowException) -> bool:
    return error.get_http_status_code() in (401, 403) or "code 401" in str(error.message)


def _first_line(said: object) -> str:
    return next(iter(str(said).strip().splitlines()), type(said).__name__)[:_LONGEST_MESSAGE]


def open_run(uri: str, folder: UPath, config: Config, *, parent: str | None = None) -> TrackedRun:
    """Start the run of a training or of a sweep.

    Args:
        uri: of the tracking server.
        folder: where checkpoints are stored; its name is the run's.
        config: logged as parameters, and what the experiment is made from as tags.
        parent: id of the run that this one is part of.
    """
    found = find_run(uri, folder)
    if found and not found.is_finished():
        found.finish("KILLED")  # before its first checkpoint, or it would go on
    client = MlflowClient(uri, uri)
    tags = {_RUN_FOLDER: str(folder), **provenance(config)}
    if parent:
        tags[MLFLOW_PARENT_RUN_ID] = parent
    run = client.create_run(experiment_id(client), run_name=folder.name, tags=tags)
    params = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in flatten(config).items()]
    client.log_batch(run.info.run_id, params=params)
    return TrackedRun(uri, run.info.run_id)


def run_of(uri: str, folder: UPath, saved: Saved) -> TrackedRun | None:
    """Return the run of a training that has a checkpoint; None where the server knows of none."""
    return _known(uri, saved.run_id) or find_run(uri, folder)


def _known(uri: str, run_id: str | None) -> TrackedRun | None:
    """The run of this id, if the server has it."""
    if run_id is None:
        return None
    tracked = TrackedRun(uri, run_id)
    try:
        is_there = tracked.client().get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return None
    return tracked if is_there else None


def find_run(uri: str, folder: UPath) -> TrackedRun | None:
    """Return the last run of a training that is stored in `folder`; None where there is none."""
    client = MlflowClient(uri, uri)
    ours = f"tags.`{_RUN_FOLDER}` = '{folder}'"
    found = client.search_runs([experiment_id(client)], ours, max_results=1, order_by=["start_time DESC"])
    return TrackedRun(uri, found[0].info.run_id) if found else None


def log_evaluation(uri: str, page: Path, evaluations: Sequence["Evaluation"]) -> str:
    """Keep an evaluation's report and figures in a run of its own, and return the run's id.

    Args:
        uri: of the tracking server.
        page: the report; an earlier run of the same page goes on.
        evaluations: whose figures are logged, as `DATA_SET/SUBJECT/noc90` and so on.
    """
    client = MlflowClient(uri, uri)
    whole_path = UPath(page.absolute())  # another checkout has a page of the same relative path
    found = find_run(uri, whole_path)
    tags = {_RUN_FOLDER: str(whole_path), "kind": "evaluation"}
    run_id = (
        found.run_id
        if found
        else client.create_run(experiment_id(client), run_name=page.parent.name, tags=tags).info.run_id
    )
    now = get_current_time_millis()
    figures = [
        Metric(metric_name(f"{each.data_set}/{each.subject}/{name}"), measure.value, now, 0)
        for each in evaluations
        for name, measure in each.measures.items()
    ]
    for start in range(0, len(figures), _MOST_METRICS):
        client.log_batch(run_id, metrics=figures[start : start + _MOST_METRICS])
    client.log_artifact(run_id, str(page))
    client.set_terminated(run_id, "FINISHED")
    return run_id


def metric_name(text: str) -> str:
    """Return a text as MLflow takes it for the name of a metric."""
    return _METRIC_NAME.sub("_", text)


def close_children(parent: TrackedRun, stopped: Collection[str]) -> None:
    """End the runs inside a sweep that did not end by themselves.

    Args:
        parent: the sweep's run.
        stopped: names of the runs that may have been stopped, and end as KILLED; all others FAILED.
    """
    client = parent.client()
    experiment = client.get_run(parent.run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'")
    for child in children:
        if child.info.status == "RUNNING":
            client.set_terminated(child.info.run_id, "KILLED" if child.info.run_name in stopped else "FAILED")


def experiment_id(client: MlflowClient, name: str = EXPERIMENT) -> str:
    """Return the id of an experiment, which is made where there is none of this name."""
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    location = None
    if client.tracking_uri.startswith("sqlite:///"):  # or files would go beside the working directory
        location = str(Path(client.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts")
    return str(client.create_experiment(name, artifact_location=location))
