"""`ray job submit` and `serve deploy` to a cluster that `ray start` made: `make test-cluster`."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import httpx
import mlflow
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

from benchmarks.shared.serving import wait_for
from mst.checkpoint import MANIFEST
from mst.clicks import Click
from mst.client import Client
from mst.config import Config
from mst.overrides import override
from pipelines.cluster import free_port
from pipelines.storage import PROJECT
from serve.http.keys import VARIABLE
from tests.conftest import as_options, picture

pytestmark = pytest.mark.cluster

PROGRAMS = Path(sys.executable).parent
PACKAGES = ("mst", "pipelines", "serve", "tune_spaces")
STAYS = (".git", ".venv", "benchmarks", "checkpoints", "data", "docs", "mlruns", "out", "runs", "tests")
"""What no job is sent."""
MEGABYTE = 2**20
EPOCHS = 20
COMMIT = "0123456789" * 4
KEY = "a key for the server"


class Cluster(NamedTuple):
    """A cluster, and what its user has in the environment."""

    address: str
    environment: dict[str, str]

    def command(self, verb: str, *arguments: str) -> list[str]:
        """A command line of `ray job`."""
        return [str(PROGRAMS / "ray"), "job", verb, "--address", self.address, *arguments]

    def job(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ray job`; what it prints of errors is in its output too."""
        return subprocess.run(
            self.command(verb, *arguments),
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=180,
        )

    def train(self, registry: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """Submit a training."""
        variables = {"env_vars": {"MLFLOW_TRACKING_URI": registry, "MST_COMMIT": COMMIT}}
        return self.job(
            "submit",
            *("--working-dir", ".", "--runtime-env-json", json.dumps(variables)),
            *(() if wait else ("--no-wait",)),
            *("--", "python", "pipelines/train.py", "--recipe", "demo", "--num-workers", "2", *arguments),
        )

    def follow(self, job: str, text: str) -> str:
        """Read a job's log until a text is in it; return the log so far."""
        command = self.command("logs", "--follow", job)
        seen = ""
        with subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as reader:
            for line in reader.stdout:
                seen += line
                if text in line:
                    break
            reader.terminate()
        return seen


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of two cores that obeys nobody without its token; its jobs run this python."""
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    at_once = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}  # or its end takes half a minute
    environment = {**os.environ, "PATH": path, **token, **at_once, VARIABLE: KEY}
    dashboard, agent = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    # Not `ray stop` in the end: it would stop every Ray on the machine.
    folder = tempfile.mkdtemp(prefix="ray")  # its path must be short: Ray has sockets in it
    process = subprocess.Popen(
        [
            *(PROGRAMS / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
            *(f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            f"--dashboard-agent-listen-port={agent}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(120):
        assert process.poll() is None
        try:
            if httpx.get(f"{address}/api/version").status_code < 500:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    yield Cluster(address, environment)
    process.terminate()
    process.wait(timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


def options(config: Config, storage: Path) -> list[str]:
    """Of a training, which is named `job`."""
    return ["--name", "job", "--storage", str(storage), *as_options(config)]


def test_a_server_is_deployed_and_changed(cluster, checkpoint, tmp_path):
    config, port = yaml.safe_load((PROJECT / "serve" / "config.yaml").read_text()), free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    settings = config["applications"][0]["args"]
    settings |= {"model": str(checkpoint), "image_store": str(tmp_path / "images"), "cpus_per_replica": 1}
    file = tmp_path / "config.yaml"

    def run(verb, *arguments):
        command = [PROGRAMS / "serve", verb, *arguments, "--address", cluster.address]
        told = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stderr

    def deploy():
        file.write_text(yaml.safe_dump(config))
        run("deploy", str(file))

    url = f"http://127.0.0.1:{port}"
    deploy()
    assert wait_for(lambda: httpx.get(f"{url}/readyz").is_success, 120) < 120
    assert httpx.post(f"{url}/v1/images", content=b"").status_code == 401
    with Client(url, api_key=KEY) as client:
        mask = client.segment(picture(), [Click(20, 30, True)]).mask
    assert mask.shape == picture().shape[:2]
    settings["max_bytes"] = 10
    deploy()
    bearer = {"Authorization": f"Bearer {KEY}"}
    too_large = partial(httpx.post, f"{url}/v1/images", content=bytes(11), headers=bearer)
    assert wait_for(lambda: too_large().status_code == 413, 120) < 120
    run("shutdown", "--yes")


def test_a_server_runs_as_a_job(cluster, checkpoint, tmp_path):
    """As docs/cluster.md has it for cluster.yaml, whose nodes have no code but a job's."""
    port = free_port()
    (tmp_path / "api_keys").write_text(KEY)
    server = ("python", "-m", "serve", "--model", str(checkpoint), "--port", str(port))
    places = ("--api-keys", str(tmp_path / "api_keys"), "--image-store", str(tmp_path / "images"))
    submit = ("--no-wait", "--submission-id", "serve", "--working-dir", ".", "--", *server, *places)
    submitted = cluster.job("submit", *submit)
    assert submitted.returncode == 0, submitted.stdout
    url = f"http://127.0.0.1:{port}"
    assert wait_for(lambda: httpx.get(f"{url}/readyz").is_success, 120) < 120, cluster.job("logs", "serve")
    assert httpx.post(f"{url}/v1/images", content=b"").status_code == 401
    with Client(url, api_key=KEY) as client:
        assert client.segment(picture(), [Click(20, 30, True)]).mask.shape == picture().shape[:2]
    assert cluster.job("stop", "serve").returncode == 0
    assert wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 404, 60) < 60


def test_a_stopped_job_goes_on_and_finishes(cluster, registry, config, tmp_path):
    arguments = options(override(config, {"train.epochs": EPOCHS, "train.samples_per_epoch": 48}), tmp_path)
    submitted = cluster.train(registry, *arguments, wait=False)
    assert submitted.returncode == 0, submitted.stdout
    job = re.search(r"raysubmit_\w+", submitted.stdout)[0]
    log = cluster.follow(job, f"epoch 3/{EPOCHS}")
    assert f"epoch 1/{EPOCHS}" in log, log
    assert "RUNNING" in cluster.job("status", job).stdout
    stopped = cluster.job("stop", job)
    assert stopped.returncode == 0, stopped.stdout
    assert "was stopped" in cluster.job("status", job).stdout
    log = cluster.job("logs", job).stdout
    assert f"epoch 3/{EPOCHS}" in log
    assert "best checkpoint" not in log

    done = cluster.train(registry, *arguments)
    assert done.returncode == 0, done.stdout
    assert f"epoch 1/{EPOCHS}" not in done.stdout
    assert f"epoch {EPOCHS}/{EPOCHS}" in done.stdout
    assert "best checkpoint" in done.stdout
    assert list((tmp_path / "job").glob(f"*/{MANIFEST}"))
    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.tags["git_commit"] == COMMIT


def test_a_job_refuses_paths_that_go_with_it(cluster, registry, config, tmp_path):
    refused = cluster.train(registry, *options(config, tmp_path), "--storage", "runs")
    assert refused.returncode != 0
    assert "the path 'runs' is relative, but a Ray job runs in a copy of the project" in refused.stdout


@pytest.mark.parametrize("token", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_who_has_not_the_token_submits_nothing(cluster, registry, tmp_path, token):
    known = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
    # Ray looks for a token in the home folder as well.
    stranger = cluster._replace(environment={**known, "HOME": str(tmp_path), **token})
    before = cluster.job("list").stdout
    refused = stranger.train(registry, "--storage", str(tmp_path), wait=False)
    assert refused.returncode != 0
    assert "uthenticat" in refused.stdout, refused.stdout
    assert "raysubmit" not in refused.stdout
    assert cluster.job("list").stdout.count("submission_id") == before.count("submission_id")


def test_the_packages_alone_are_uploaded(tmp_path):
    project, package = tmp_path / "project", tmp_path / "package.zip"
    shutil.copytree(
        PROJECT, project, ignore=lambda folder, _: STAYS if Path(folder) == PROJECT else ["__pycache__"]
    )
    for name in STAYS:
        for file in (project / name / "large.bin", project / name / "some" / "where" / "model.safetensors"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(secrets.token_bytes(4 * MEGABYTE))

    def upload(folder: str, excludes: list[str]) -> None:
        create_package(folder, package, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed({"working_dir": str(project)}, include_gitignore=True, upload_fn=upload)
    files = {each.filename: each.file_size for each in ZipFile(package).infolist() if not each.is_dir()}
    packages = [file for name in PACKAGES for file in (PROJECT / name).rglob("*") if file.is_file()]
    sources = {file.relative_to(PROJECT).as_posix() for file in packages if "__pycache__" not in file.parts}
    assert set(files) == sources | {"pyproject.toml", "constraints.txt", ".gitignore", ".rayignore"}
    assert max(files.values()) < 64_000  # Ray stores what is sent as it is
