"""What the server asks of Ray's jobs where it is asked to adapt, and what it tells of them."""

from types import SimpleNamespace

import httpx
import pytest

from serve.errors import BusyError, OverloadedError
from serve.settings import ServeSettings
from serve.state import adapting
from serve.state.adapting import Adapting
from tests.conftest import listening, local_api, picture, png

KEYS = "a-key-that-may-adapt", "a-key-that-may-click"


class Jobs:
    """Ray's jobs, as its client shows them."""

    def __init__(self) -> None:
        self.jobs: dict[str, SimpleNamespace] = {}
        self.logs = ""

    def submit_job(self, submission_id: str, **more: object) -> None:
        status = SimpleNamespace(value="RUNNING")
        self.jobs[submission_id] = SimpleNamespace(submission_id=submission_id, status=status, **more)

    def list_jobs(self) -> list[SimpleNamespace]:
        other = SimpleNamespace(submission_id=None, status=SimpleNamespace(value="RUNNING"))
        return [other, *self.jobs.values()]

    def get_job_logs(self, submission_id: str) -> str:
        return self.logs


@pytest.fixture
def jobs(monkeypatch) -> Jobs:
    found = Jobs()
    monkeypatch.setattr(adapting, "_client", lambda: found)
    return found


@pytest.fixture
def settings(checkpoint, tmp_path) -> ServeSettings:
    (tmp_path / "keys").write_text(f"{KEYS[0]}\n")
    return ServeSettings(
        model=str(checkpoint),
        image_store=str(tmp_path / "images"),
        annotation_store=str(tmp_path / "annotations"),
        adapt_runs=str(tmp_path / "runs"),
        adapt_keys=str(tmp_path / "keys"),
        precision="fp32",
    )


def test_it_is_a_job_of_the_accepted_masks_and_one_at_a_time(jobs, settings):
    asked = Adapting(settings)
    assert asked.last().state == "none"
    begun = asked.begin()
    (job,) = jobs.jobs.values()
    assert begun.name == job.submission_id
    assert f"--data accepted:{settings.annotation_store} --storage {settings.adapt_runs}" in job.entrypoint
    assert job.runtime_env["env_vars"]["MLFLOW_TRACKING_URI"]
    with pytest.raises(BusyError, match="is under way"):
        asked.begin()
    jobs.logs = "\n".join(f"line {number}" for number in range(90))
    assert asked.last()[:2] == ("running", begun.name)
    assert asked.last().lines[-1] == "line 89"


@pytest.mark.parametrize(
    ("status", "logs", "state"),
    [
        ("SUCCEEDED", "models:/mst@champion is now version 2", "promoted"),
        ("FAILED", "not promoted: gain: NoC@90", "not promoted"),
        ("FAILED", "error: no photo with objects", "failed"),
        ("STOPPED", "", "failed"),
        ("PENDING", "", "running"),
    ],
)
def test_how_it_ended_is_told(status, logs, state, jobs, settings):
    asked = Adapting(settings)
    name = asked.begin().name
    jobs.jobs[name].status.value, jobs.logs = status, logs
    assert asked.last() == (state, name, (logs,) if logs else ())


def test_where_ray_takes_no_jobs_it_is_said_so(settings):
    def away() -> None:
        raise ConnectionError

    with pytest.raises(OverloadedError, match="jobs do not answer"):
        Adapting(settings, away).begin()


def test_over_http_it_is_for_keys_that_may(jobs, settings):
    with listening(local_api(settings, *KEYS)) as url, httpx.Client(base_url=url, timeout=60) as http:
        may, may_not = ({"Authorization": f"Bearer {key}"} for key in KEYS)
        assert http.post("/v1/images", content=png(picture()), headers=may_not).json()["adapts"]
        assert http.post("/v1/adapt", headers=may_not).status_code == 403
        assert http.get("/v1/adapt", headers=may_not).json() == {"state": "none", "name": "", "lines": []}
        assert http.post("/v1/adapt").status_code == 401
        assert http.post("/v1/adapt", headers=may).status_code == 202
        assert http.post("/v1/adapt", headers=may).status_code == 409
        assert http.get("/v1/adapt", headers=may_not).json()["state"] == "running"


def test_a_server_that_adapts_nothing_has_no_such_address(http):
    assert http.post("/v1/adapt").status_code == 404
    assert not http.post("/v1/images", content=png(picture())).json()["adapts"]
