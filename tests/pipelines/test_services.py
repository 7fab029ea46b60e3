"""MLflow as a team runs it: PostgreSQL, artifacts in S3, a login; `make test-services`."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import boto3
import pytest
from mlflow import MlflowClient
from upath import UPath

from mst.config import Config
from mst.overrides import override
from mst.training.checkpoints import saved
from pipelines.cluster import free_port
from pipelines.registry.versions import fetch_checkpoint, registry_client, snapshot
from pipelines.storage import PROJECT
from pipelines.training.tracking import find_run
from tests.conftest import as_options
from tests.pipelines.registry.test_registry import check_race, logged, race
from tests.stores import Server

pytestmark = pytest.mark.services

PASSWORD = "correct horse battery"
BUCKET = "mlflow"


class Postgres(Server):
    """A database on this machine; it does not run as root, so as the user that its package makes."""

    def __init__(self, folder: Path) -> None:
        programs = [Path(each).parent for each in (shutil.which("initdb"),) if each]
        programs += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not programs:
            pytest.fail("this test needs PostgreSQL: apt-get install postgresql")
        user = {"user": "postgres"} if os.getuid() == 0 else {}
        if user:
            shutil.chown(folder, "postgres")
        data, port = folder / "data", free_port()
        initdb = [programs[-1] / "initdb", "-D", data, "-U", "mlflow", "-A", "trust"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
        options = ("-D", data, "-p", port, "-k", folder, "-h", "127.0.0.1")
        super().__init__(*options, port=port, python=programs[-1] / "postgres", cwd=folder, **user)
        self.address = f"postgresql://mlflow@127.0.0.1:{port}"

    def kill(self) -> None:
        """Stop at once, as a crash does; its processes are no group that could be killed as one."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait()


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Iterator[Postgres]:
    folder = Path(f"/tmp/mst-postgres-{secrets.token_hex(4)}")  # where another user can write
    folder.mkdir()
    database = Postgres(folder)
    yield database
    database.kill()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def mlflow_server(database, s3, tmp_path_factory) -> Iterator[Server]:
    """The server of docs/registry.md, and a login as its administrator."""
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    folder = tmp_path_factory.mktemp("server")
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\n"
        "default_permission = READ\n"
        f"database_uri = {database.address}/auth\n"
        "admin_username = admin\n"
        f"admin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    psql = ["psql", "-q", f"{database.address}/postgres", "-c", "CREATE DATABASE auth"]
    subprocess.run(psql, check=True)
    port = free_port()
    command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", 2]
    command += ["--backend-store-uri", f"{database.address}/postgres", "--app-name", "basic-auth"]
    command += ["--artifacts-destination", f"s3://{BUCKET}/artifacts"]
    secret = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test"}
    server = Server(*command, port=port, env=os.environ | secret, cwd=folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        yield server
    server.kill()


def away(servers: Sequence[Server], seconds: float) -> None:
    """Take servers away, and bring them back in the reverse order."""
    for server in servers:
        server.kill()
    time.sleep(seconds)
    for server in reversed(servers):
        server.start()


def command(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_clients_race_and_one_wins_each_time(mlflow_server, scenes, tmp_path):
    source = logged(mlflow_server.url, scenes, tmp_path)
    told = race(mlflow_server.url, source, tmp_path / "race", clients=2, rounds=5)
    check_race(mlflow_server.url, told, clients=2, rounds=5)


def test_a_race_goes_on_when_server_and_database_restart(mlflow_server, database, scenes, tmp_path):
    source, before = logged(mlflow_server.url, scenes, tmp_path), len(versions_of(mlflow_server.url))
    racing = tmp_path / "race"

    def restart() -> None:
        while not (racing / "1 seen").exists():
            time.sleep(0.05)
        away([mlflow_server, database], seconds=3)

    thief = threading.Thread(target=restart)
    thief.start()
    told = race(mlflow_server.url, source, racing, clients=2, rounds=4)
    thief.join()
    check_race(mlflow_server.url, told, clients=2, rounds=4, before=before)


def test_a_training_loses_nothing_when_the_server_restarts(mlflow_server, database, config: Config, tmp_path):
    config = override(config, {"train.epochs": "8", "train.choose_by": "iou"})
    steps = 16
    folder = UPath(tmp_path) / "runs" / "restarted"
    options = ["--recipe", "demo", "--storage", tmp_path / "runs", "--name", "restarted"]

    def restart() -> None:
        while len(saved(folder)) < 2:
            time.sleep(0.05)
        away([mlflow_server, database], seconds=5)

    thief = threading.Thread(target=restart)
    thief.start()
    done = command("pipelines/train.py", *options, *as_options(config))
    thief.join()
    assert done.returncode == 0, done.stderr
    client = MlflowClient(mlflow_server.url, mlflow_server.url)
    run = client.get_run(find_run(mlflow_server.url, folder).run_id)
    assert run.info.status == "FINISHED"
    logged_steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(logged_steps) == list(range(steps))

    data = f"coco:{config.data.root}/annotations/instances_test.json"
    promote = ("pipelines/promote.py", "--run", folder, "--data", data, "--max-objects", 4)
    promote += ("--max-clicks", 3, "--cpus-per-worker", 1)
    done = command(*promote, "--force", "a test of the services")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "models:/mst@champion is now version" in done.stdout
    champion = snapshot(registry_client(mlflow_server.url)).champion
    assert champion.tags["promotion.by"].startswith("admin on ")
    fetched = fetch_checkpoint(mlflow_server.url, "models:/mst@champion", tmp_path / "fetched")
    assert (fetched / "model.safetensors").is_file()
    stored = boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    assert any(each["Key"].endswith("card/README.md") for each in stored)


def test_who_may_not_enter_is_told_so(mlflow_server):
    done = command("pipelines/promote.py", "--log", MLFLOW_TRACKING_PASSWORD="wrong")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in done.stderr


def versions_of(uri: str) -> list[str]:
    return [each.version for each in registry_client(uri).search_model_versions("name = 'mst'")]
