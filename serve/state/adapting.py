"""Adapting the champion to the accepted masks: a Ray job that runs `pipelines/adapt.py`, one at a time.

The jobs that Ray knows are all that is remembered here, so that any replica tells the same.
"""

import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ray

from serve.errors import BusyError, OverloadedError
from serve.inference.registry import registry_of
from serve.settings import ServeSettings

_COMMAND = Path(__file__).resolve().parent.parent.parent / "pipelines" / "adapt.py"
_NAMED = "adapt-"
_UNFINISHED = ("PENDING", "RUNNING")
_SAID = 60  # last lines that are told

State = Literal["none", "running", "promoted", "not promoted", "failed"]


class Adaptation(NamedTuple):
    """The last adaptation that was begun."""

    state: State
    name: str
    """Of the run; empty where there is none."""
    lines: tuple[str, ...]
    """The last ones that it printed: progress, and at the end what it is worth."""


class Adapting:
    """Begins adaptations, and tells how far the last one is.

    Args:
        settings: of the server.
        client: makes a client of Ray's jobs.
    """

    def __init__(self, settings: ServeSettings, client: Callable[[], Any] | None = None) -> None:
        self._settings, self._client = settings, client or _client

    def begin(self) -> Adaptation:
        """Begin one.

        Raises:
            BusyError: one is under way.
            OverloadedError: Ray takes no jobs.
        """
        settings = self._settings
        client = self._asked(self._client)
        if self._last(client).state == "running":
            raise BusyError("an adaptation is under way; GET /v1/adapt tells how far it is")
        name = f"{_NAMED}{datetime.now(UTC):%Y%m%d-%H%M%S}"
        words = ["--data", f"accepted:{settings.annotation_store}", "--storage", settings.adapt_runs]
        words += ["--name", name, "--cpus-per-worker", "1"]
        uri = {"MLFLOW_TRACKING_URI": registry_of(settings)}
        self._asked(
            lambda: client.submit_job(
                submission_id=name,
                entrypoint=shlex.join([sys.executable, str(_COMMAND), *words]),
                runtime_env={"env_vars": {**uri, "PYTHONPATH": str(_COMMAND.parent.parent)}},
            )
        )
        return Adaptation("running", name, ())

    def last(self) -> Adaptation:
        """Return the last one that was begun.

        Raises:
            OverloadedError: Ray does not tell.
        """
        return self._last(self._asked(self._client))

    def _last(self, client: Any) -> Adaptation:
        jobs = [
            each for each in self._asked(client.list_jobs) if (each.submission_id or "").startswith(_NAMED)
        ]
        if not jobs:
            return Adaptation("none", "", ())
        newest = max(jobs, key=lambda each: each.submission_id)
        lines = self._asked(lambda: client.get_job_logs(newest.submission_id)).splitlines()[-_SAID:]
        return Adaptation(_state(str(newest.status.value), lines), newest.submission_id, tuple(lines))

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (RuntimeError, ConnectionError, OSError) as error:
            raise OverloadedError("Ray's jobs do not answer") from error


def _state(status: str, lines: list[str]) -> State:
    if status in _UNFINISHED:
        return "running"
    if status == "SUCCEEDED":
        return "promoted"
    return "not promoted" if any("not promoted" in line for line in lines) else "failed"


def _client() -> Any:
    from ray.job_submission import JobSubmissionClient  # noqa: PLC0415 - takes a second

    return JobSubmissionClient(ray.get_runtime_context().gcs_address)
