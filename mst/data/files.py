"""The bytes of files wherever they lie: in folders, in S3 (`s3://bucket/…`), behind `https://…` (by fsspec).

A `UPath` is a path in any of them. Endpoint and credentials of S3 are those that s3fs finds, such as
`AWS_ENDPOINT_URL` and `AWS_ACCESS_KEY_ID`. A folder behind `https://` can be listed where its server shows
a page of links to what it holds, as most do when asked to (`autoindex`).
"""

import errno
import logging
import os
import posixpath
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, TypeVar
from urllib.parse import unquote

import fsspec
from aiohttp import ClientResponseError, ClientTimeout
from botocore.exceptions import NoCredentialsError, PartialCredentialsError
from upath import UPath

from mst.errors import DataError

Fetch = Callable[[UPath], bytes]
"""Reads a file: `fetch`, or a `mst.data.cache.FileCache`."""

_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds for which a store that does not answer is asked again."""

_LONGEST_PAUSE = 5.0
_CONNECT, _SILENCE = 5.0, 15.0  # seconds until a connection, and without a byte, that count as a failure
_BY_HTTP: dict[str, Any] = {
    "client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_SILENCE)}
}
_CLIENTS: dict[str, dict[str, Any]] = {
    "s3": {
        "max_concurrency": 1,  # with more, s3fs asks for the size before it asks for the file
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": _CONNECT,
            "read_timeout": _SILENCE,
            "retries": {"total_max_attempts": 1},  # asking again is done here
        },
    },
    "http": _BY_HTTP,
    "https": _BY_HTTP,
}

_ABSENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_MISTAKES = (NoCredentialsError, PartialCredentialsError, ImportError, AttributeError, TypeError, ValueError)
_REFUSALS = {errno.EINVAL, errno.EPERM}  # what s3fs makes of S3's answer that a request is wrong
_BUSY = {408, 425, 429}


def as_path(text: str | os.PathLike[str]) -> UPath:
    """Return the path, or the address in a store (`s3://bucket/key`), that a person wrote.

    Raises:
        DataError: no file can have it, or there is no such kind of store.
    """
    try:
        path = UPath(text)
    except (ValueError, ImportError) as error:
        raise DataError(f"'{text}' is no path ({gist(error)}); an address is s3://BUCKET/KEY, say") from None
    if "\0" in str(path):
        raise DataError(f"{str(path)!r} is no path: no file's name has a NUL in it")
    return path


def is_remote(path: UPath) -> bool:
    """Whether a path lies elsewhere than in this machine's folders."""
    return not isinstance(path, Path)


def fetch(path: UPath, patience: float | None = None) -> bytes:
    """Read a whole file; a store that fails is asked again, with growing pauses.

    Args:
        path: of the file.
        patience: seconds after which a failing store is given up; `PATIENCE` if None.

    Raises:
        OSError: the file does not exist, or may not be read.
        DataError: the store did not answer for so long, or cannot be asked, for lack of credentials say.
    """
    if not is_remote(path):
        return path.read_bytes()
    return bytes(_ask(path, lambda: _store(path).cat_file(path.path), patience))


def exists(path: UPath) -> bool:
    """Whether there is such a file or folder.

    Raises:
        DataError: its store cannot be reached, or refuses to tell.
    """
    return _look(path, lambda: bool(_store(path).exists(path.path))) if is_remote(path) else path.exists()


def is_folder(path: UPath) -> bool:
    """Whether there is such a folder; in a store, one that holds something.

    Raises:
        DataError: as `exists`.
    """
    return _look(path, lambda: bool(_store(path).isdir(path.path))) if is_remote(path) else path.is_dir()


def names(folder: UPath) -> set[str]:
    """Return the names of what lies in a folder; none where there is no such folder.

    Raises:
        DataError: as `exists`; or a web server does not list the folder.
    """
    if not is_remote(folder):
        return {each.name for each in folder.iterdir()} if folder.is_dir() else set()
    found = {posixpath.basename(each.rstrip("/")) for each in _look(folder, lambda: _listed(folder))}
    if folder.protocol not in ("http", "https"):
        return found
    if not found:
        raise DataError(f"{folder}: the server lists no files there; it has to, as with nginx's autoindex")
    return {unquote(each) for each in found}


def download(path: UPath, to: Path) -> None:
    """Copy a file to this machine.

    Raises:
        OSError, DataError: as `fetch`.
    """
    if is_remote(path):
        _ask(path, lambda: _store(path).get_file(path.path, str(to)))
    else:
        shutil.copyfile(str(path), to)


def upload(file: Path, to: UPath) -> None:
    """Copy a file of this machine; a store shows it once it is whole, and is asked again where it fails.

    Raises:
        OSError: the place may not be written.
        DataError: the store did not answer for `PATIENCE` seconds, or cannot be asked.
    """
    if is_remote(to):
        _ask(to, lambda: _store(to).put_file(str(file), to.path))
    else:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, str(to))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a local file to write to, which takes the place of `path` when all of it is there, or is gone.

    The folder is made where it is missing.

    Raises:
        DataError: it cannot be written.
    """
    writing = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield writing
            writing.replace(path)
        finally:
            writing.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or gist(error)})") from None


def check_writable(folder: UPath) -> None:
    """Make a folder where it is missing, and see that a file can be written in it.

    Raises:
        DataError: it cannot be written.
    """
    probe = folder / f".writable-{uuid.uuid4().hex}"
    try:
        with NamedTemporaryFile() as empty:
            upload(Path(empty.name), probe)
        remove(probe)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({gist(error)})") from None


def check_file_writable(file: Path) -> None:
    """See that a file can be written here; its folder is made where it is missing.

    Raises:
        DataError: it cannot, or is a folder.
    """
    if file.is_dir():
        raise DataError(f"{file}: a folder is there already; name a file")
    check_writable(UPath(file.parent))


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder of this machine, and in its folders."""
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def remove(path: UPath) -> None:
    """Remove a file or a folder with all that is in it; what is gone already is no error.

    Raises:
        OSError: the path may not be removed.
        DataError: as `upload`.
    """
    if is_remote(path):
        with suppress(FileNotFoundError):
            _ask(path, lambda: _store(path).rm(path.path, recursive=True))
    elif path.is_dir():
        shutil.rmtree(str(path))
    else:
        path.unlink(missing_ok=True)


def _listed(folder: UPath) -> list[str]:
    try:
        return list(_store(folder).ls(folder.path, detail=False))
    except FileNotFoundError:
        return []


def _store(path: UPath) -> Any:
    """The client of a path's store.

    Clients have a thread, which a forked process lacks: so not the one that the path may have brought along,
    but one that fsspec keeps for each process.
    """
    store = fsspec.filesystem(path.protocol, **{**_CLIENTS.get(path.protocol, {}), **path.storage_options})
    store.retries = 1  # s3fs would ask five times in silence
    return store


def _look(path: UPath, look: Callable[[], _Answer]) -> _Answer:
    try:
        return _ask(path, look)
    except OSError as error:
        raise DataError(f"{path}: cannot be looked up ({gist(error)})") from None


def _ask(path: UPath, ask: Callable[[], _Answer], patience: float | None = None) -> _Answer:
    deadline, pause = time.monotonic() + (PATIENCE if patience is None else patience), 0.1
    while True:
        try:
            return ask()
        except _ABSENT:
            raise
        except Exception as error:  # a client of a store raises whatever its layers do
            if _is_final(error):
                raise DataError(f"{path}: cannot be read ({gist(error)})") from None
            if time.monotonic() + pause > deadline:
                raise DataError(f"{path}: cannot be reached ({gist(error)})") from None
            _log.warning("%s: %s; asked again in %.1f s", path, gist(error), pause)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_final(error: Exception) -> bool:
    """Whether the same question will have the same answer."""
    if isinstance(error, ClientResponseError):
        return 400 <= error.status < 500 and error.status not in _BUSY
    return isinstance(error, _MISTAKES) or (isinstance(error, OSError) and error.errno in _REFUSALS)


def gist(error: Exception) -> str:
    """Return what an exception says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
