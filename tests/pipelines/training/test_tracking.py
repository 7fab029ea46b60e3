"""What is said where the tracking server cannot be used."""

import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from mst.errors import ServerError
from pipelines.cluster import free_port
from pipelines.storage import PROJECT
from pipelines.training.tracking import check_server, tracking_uri
from tests.conftest import command_here
from tests.stores import Server


def test_a_server_that_is_not_there_is_said_at_once():
    port, start = free_port(), time.monotonic()
    with pytest.raises(ServerError, match=rf"no MLflow server answers at http://127.0.0.1:{port} "):
        check_server(f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 5


def test_a_password_in_the_address_is_not_shown():
    with pytest.raises(ServerError) as error:
        check_server(f"http://me:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(error.value)


def test_another_server_is_no_mlflow(monkeypatch, tmp_path):
    port = free_port()
    server = Server("-m", "http.server", port, "--bind", "127.0.0.1", port=port, cwd=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    try:
        with pytest.raises(ServerError, match=r"no MLflow server answers .*404"):
            tracking_uri()
    finally:
        server.kill()


def test_a_command_says_so_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    command = [sys.executable, "pipelines/promote.py", "--log"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no MLflow server answers at http://127.0.0.1")
    assert len(done.stderr.strip().splitlines()) == 1


def another_programs(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE recipes (name)")
    return f"sqlite:///{path}"


def of_a_newer_mlflow(path):
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        database.execute("CREATE TABLE experiments (name)")
    return f"sqlite:///{path}"


def no_database(path):
    path.write_bytes(b"no database" * 1000)
    return f"sqlite:///{path}"


def below_a_file(path):
    path.touch()
    return f"sqlite:///{path}/mlflow.db"


WRONG = {
    "below a file": (
        below_a_file,
        r"a/mlflow.db: the database cannot be opened: .*/a is no folder",
    ),
    "no such folder": (
        lambda path: f"sqlite:///{path}/mlflow.db",
        r"folder .*/a does not exist; make it",
    ),
    "a folder": (
        lambda path: path.mkdir() or f"sqlite:///{path}",
        r"a: the database cannot be opened and written",
    ),
    "no database": (no_database, r"a: the database cannot be opened and written: file is not a database"),
    "another program's": (another_programs, r"a: the database is another program's, with the tables recipes"),
    "a newer MLflow's": (of_a_newer_mlflow, r"MLflow at sqlite:///.*/a: .*ffffffffffff"),
    "an unknown scheme": (lambda path: "foo://bar", r"MLflow at foo://bar: "),
    "nobody answers": (
        lambda path: "postgresql://me:secret@127.0.0.1:1/x",
        r"no database answers at postgresql://127",
    ),
    "no driver": (lambda path: "mssql+nothing://127.0.0.1:{port}/x", r"MLflow at mssql\+nothing://127"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_database_that_cannot_be_used_is_told_in_one_line(case, tmp_path, monkeypatch):
    make, said = WRONG[case]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        uri = make(tmp_path / "a").replace("{port}", str(listening.getsockname()[1]))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(ServerError, match=said) as error:
            tracking_uri()
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_new_database_is_set_up_and_a_refused_one_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert tracking_uri() == f"sqlite:///{tmp_path / 'mlflow.db'}"
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM experiments").fetchone() == (1,)
    check_server(tracking_uri())  # it may be used again
    with pytest.raises(ServerError):
        check_server(f"sqlite:///{tmp_path / 'none' / 'mlflow.db'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]


@pytest.mark.parametrize(
    "command",
    [
        ("pipelines/train.py", "--recipe", "demo"),
        ("pipelines/tune.py", "--recipe", "demo", "--space", "smoke", "--name", "x"),
        ("pipelines/promote.py", "--log"),
        ("-m", "serve"),
        ("-m", "serve", "--model", "models:/mst@champion"),
    ],
    ids=" ".join,
)
def test_every_command_says_so_in_one_line(command, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/mlflow.db")
    done = command_here(*command)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert f"{tmp_path}/file/mlflow.db: the database cannot be opened" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
