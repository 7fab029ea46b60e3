"""The bytes of files wherever they lie: in folders, in S3 (`s3://bucket/…`), behind `https://…` (by fsspec).

A `UPath` is a path in any of them. Endpoint and credentials of S3 are those that s3fs finds, such as
`AWS_ENDPOINT_URL` and `AWS_ACCESS_KEY_ID`. A folder behind `https://` can be listed where its server shows
a page of links to what it holds, as most do when asked to (`autoindex`).
"""

import errno
import fcntl
import hashlib
import logging
import os
import posixpath
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, TypeVar
from urllib.parse import unquote

import fsspec
from aiohttp import ClientResponseError, ClientTimeout
from botocore.exceptions import NoCredentialsError, PartialCredentialsError
from upath import UPath

from mst.errors import DataError

Fetch = Callable[[UPath], bytes]
"""Reads a file: `fetch`, or a `FileCache`."""

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
_MISTAKES = (NoCredentialsError, PartialCredentialsError, ImportError, TypeError, ValueError)
_REFUSALS = {errno.EINVAL, errno.EPERM}  # what s3fs makes of S3's answer that a request is wrong
_BUSY = {408, 425, 429}

_KEPT = 0.9  # share of a cache's limit that is left when copies had to be removed
_ABANDONED = 600.0  # seconds after which a part was left by a killed process
_CHECKSUM_BYTES = 4


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
        raise DataError(f"{path}: cannot be looked up ({_gist(error)})") from None


def _ask(path: UPath, ask: Callable[[], _Answer], patience: float | None = None) -> _Answer:
    deadline, pause = time.monotonic() + (PATIENCE if patience is None else patience), 0.1
    while True:
        try:
            return ask()
        except _ABSENT:
            raise
        except Exception as error:  # a client of a store raises whatever its layers do
            if _is_final(error):
                raise DataError(f"{path}: cannot be read ({_gist(error)})") from None
            if time.monotonic() + pause > deadline:
                raise DataError(f"{path}: cannot be reached ({_gist(error)})") from None
            _log.warning("%s: %s; asked again in %.1f s", path, _gist(error), pause)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _is_final(error: Exception) -> bool:
    """Whether the same question will have the same answer."""
    if isinstance(error, ClientResponseError):
        return 400 <= error.status < 500 and error.status not in _BUSY
    return isinstance(error, _MISTAKES) or (isinstance(error, OSError) and error.errno in _REFUSALS)


def reader(cache: str | None, gigabytes: float) -> Fetch:
    """Return what reads the images of a training: through a cache where its folder is given."""
    return fetch if cache is None else FileCache(Path(cache), int(gigabytes * 1e9))


class FileCache:
    """Keeps copies of remote files in a folder, up to a number of bytes; any number of processes share it.

    A copy that was damaged is noticed by its checksum and fetched again; one whose original has changed is
    not. Files of this machine are read as they are. When a new copy would exceed the limit, the copies that
    were not used for longest are removed. Where the folder cannot be written, there is a warning and no copy.

    Args:
        folder: of the copies; made where it is missing.
        limit: bytes that all copies together may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit, self._is_failing = folder, limit, False
        with self._tolerant():
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._remember(self._sweep(0))

    def __call__(self, path: UPath) -> bytes:
        """Read a file as `fetch` does."""
        if not is_remote(path):
            return fetch(path)
        copy = self._folder / hashlib.sha256(str(path).encode()).hexdigest()
        content = _read_copy(copy)
        if content is None:
            content = fetch(path)
            self._keep(copy, content)
        return content

    def _keep(self, copy: Path, content: bytes) -> None:
        size = len(content) + _CHECKSUM_BYTES
        if size > self._limit:
            return
        with self._tolerant(), _part(self._folder) as part:
            part.write(zlib.crc32(content).to_bytes(_CHECKSUM_BYTES) + content)
            part.flush()
            with self._locked():
                self._make_room(size)
                Path(part.name).replace(copy)

    def _make_room(self, size: int) -> None:
        """Count `size` bytes more before they come, so that a process killed in between counts too many.

        A copy that takes another's place counts beside it until a sweep counts anew.
        """
        total = self._total() + size
        self._remember(total if total <= self._limit else self._sweep(size) + size)

    def _sweep(self, size: int) -> int:
        """Remove the oldest copies where `size` more bytes lack room; return the bytes of those that stay."""
        copies = sorted(self._copies())
        total = sum(taken for _, taken, _ in copies)
        if total + size <= self._limit:
            return total
        for _, taken, path in copies:
            if total + size <= _KEPT * self._limit:
                break
            path.unlink(missing_ok=True)
            total -= taken
        return total

    def _copies(self) -> Iterator[tuple[int, int, Path]]:
        """Time of last use, bytes and path of each copy; parts that a killed process left are removed."""
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process's part becomes a copy any time
                stat = path.stat()
                if path.suffix == ".part" and time.time() - stat.st_mtime > _ABANDONED:
                    path.unlink()
                elif not path.suffix:
                    yield stat.st_mtime_ns, stat.st_size, path

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Let a training go on where its cache fails, on a full disk say; warn of the first failure."""
        try:
            yield
        except OSError as error:
            if not self._is_failing:
                _log.warning("%s: cannot keep copies (%s)", self._folder, _gist(error))
            self._is_failing = True
        else:
            self._is_failing = False

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock.file").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _total(self) -> int:
        try:
            return int((self._folder / "total.bytes").read_text())
        except (OSError, ValueError):
            return self._limit  # unknown, so that a sweep counts

    def _remember(self, total: int) -> None:
        (self._folder / "total.bytes").write_text(str(total))


@contextmanager
def _part(folder: Path) -> Iterator[IO[bytes]]:
    """A new file, which is gone after the block if it was not renamed."""
    with NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def _read_copy(copy: Path) -> bytes | None:
    """Return a copy's content and mark it as used; None where there is none, or a damaged one."""
    try:
        stored = copy.read_bytes()
    except OSError:
        return None
    checksum, content = stored[:_CHECKSUM_BYTES], stored[_CHECKSUM_BYTES:]
    if len(checksum) < _CHECKSUM_BYTES or zlib.crc32(content) != int.from_bytes(checksum):
        _log.warning("%s: a damaged copy is fetched again", copy)
        return None
    with suppress(OSError):  # another process has removed it meanwhile
        os.utime(copy)
    return content


def _gist(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
