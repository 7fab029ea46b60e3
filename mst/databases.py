"""Addresses of databases that cannot be used (`sqlite:////runs/mlflow.db`, `postgresql://host/name`).

Whoever opens one would say so after minutes of tries, or in fifty lines.
"""

import re
import socket
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mst.errors import ServerError

_SQLITE = "sqlite:///"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_PATIENCE = 5.0  # seconds that a database has to accept a connection
_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"


def check_database(uri: str, tables: frozenset[str] = frozenset()) -> None:
    """Refuse a database that cannot be opened and written; one that is no database's address passes.

    Args:
        uri: its address. A SQLite file need not be there yet, its folder must.
        tables: of which an existing SQLite file has some, or none at all: others are another program's.

    Raises:
        ServerError: the message names the file or the server, and what is wrong with it.
    """
    if uri.startswith(_SQLITE):
        _check_file(Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])), tables)
        return
    kind = uri.partition(":")[0].partition("+")[0]
    if kind in _PORTS:
        _check_port(uri, _PORTS[kind])


def without_password(uri: str) -> str:
    """Return an address without the name and password that may be in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def _check_file(path: Path, tables: frozenset[str]) -> None:
    if not path.parent.is_dir():
        what = "is no folder" if path.parent.exists() else "does not exist; make it, or name another file"
        raise ServerError(f"{path}: the database cannot be opened: the folder {path.parent} {what}")
    is_new = not path.exists()
    try:
        with sqlite3.connect(path) as database:
            there = {name for (name,) in database.execute(_TABLES)}
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
        database.close()
    except (sqlite3.Error, OSError) as error:
        raise ServerError(f"{path}: the database cannot be opened and written: {error}") from None
    finally:
        if is_new and path.exists() and not path.stat().st_size:
            path.unlink()
    if tables and there and not tables & there:
        known = ", ".join(sorted(there)[:3])
        raise ServerError(
            f"{path}: the database is another program's, with the tables {known}; name another file"
        )


def _check_port(uri: str, port: int) -> None:
    try:
        server = urlsplit(uri)
        address = (server.hostname or "localhost", server.port or port)
        socket.create_connection(address, timeout=_PATIENCE).close()
    except (OSError, ValueError) as error:
        raise ServerError(
            f"no database answers at {without_password(uri)} ({error}); start it, or name another"
        ) from None
