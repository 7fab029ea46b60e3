"""The bytes of files wherever they lie: in folders, in S3 (`s3://bucket/…`), behind `https://…` (by fsspec).

A `UPath` is a path in any of them. Endpoint and credentials of S3 are those that s3fs finds, such as
`AWS_ENDPOINT_URL` and `AWS_ACCESS_KEY_ID`.
"""

import fcntl
import hashlib
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

from upath import UPath

from mst.errors import DataError

Fetch = Callable[[UPath], bytes]
"""Reads a file: `fetch`, or a `FileCache`."""

_log = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds for which a store that does not answer is asked again."""

_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_LONGEST_PAUSE = 5.0
_KEPT = 0.9  # share of a cache's limit that is left when it has been swept
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
        DataError: the store did not answer for so long.
    """
    if not is_remote(path):
        return path.read_bytes()
    deadline, pause = time.monotonic() + (PATIENCE if patience is None else patience), 0.1
    while True:
        try:
            return path.read_bytes()
        except _FINAL:
            raise
        except Exception as error:  # a client of a store raises whatever its layers do
            if time.monotonic() + pause > deadline:
                raise DataError(f"{path}: cannot be reached ({_gist(error)})") from None
            _log.warning("%s: %s; asked again in %.1f s", path, _gist(error), pause)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def reader(cache: str | None, gigabytes: float) -> Fetch:
    """Return what reads the images of a training: through a cache where its folder is given."""
    return fetch if cache is None else FileCache(Path(cache), int(gigabytes * 1e9))


class FileCache:
    """Keeps copies of remote files in a folder, up to a number of bytes; any number of processes share it.

    A copy that was damaged is noticed by its checksum and fetched again. Files of this machine are read as
    they are. When a new copy would exceed the limit, the copies that were not used for longest are removed.

    Args:
        folder: of the copies; made where it is missing.
        limit: bytes that all copies together may take.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        folder.mkdir(parents=True, exist_ok=True)

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
        try:
            with NamedTemporaryFile(dir=self._folder, suffix=".part", delete=False) as file:
                file.write(zlib.crc32(content).to_bytes(_CHECKSUM_BYTES) + content)
            with self._locked():
                replaced = copy.stat().st_size if copy.exists() else 0
                total = self._total() + size - replaced
                Path(file.name).replace(copy)
                self._remember(self._sweep() if total > self._limit else total)
        except OSError as error:  # the cache's disk is full, say: training can go on without it
            _log.warning("%s: cannot keep a copy (%s)", self._folder, _gist(error))
            if "file" in locals():
                Path(file.name).unlink(missing_ok=True)

    def _sweep(self) -> int:
        """Remove the oldest copies, and parts that a killed process left; return the bytes that stay."""
        found = []
        for path in self._folder.iterdir():
            if path.name.endswith(".part") and time.time() - path.stat().st_mtime > 2 * PATIENCE:
                path.unlink(missing_ok=True)
            elif "." not in path.name:
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= _KEPT * self._limit:
                break
            path.unlink()
            total -= size
        return total

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock.file").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _total(self) -> int:
        try:
            return int((self._folder / "total.bytes").read_text())
        except (OSError, ValueError):
            return self._limit  # unknown, so that the next sweep counts

    def _remember(self, total: int) -> None:
        (self._folder / "total.bytes").write_text(str(total))


def _read_copy(copy: Path) -> bytes | None:
    """Return a copy's content and mark it as used; None where there is none, or a damaged one."""
    try:
        stored = copy.read_bytes()
        os.utime(copy)
    except FileNotFoundError:
        return None
    checksum, content = stored[:_CHECKSUM_BYTES], stored[_CHECKSUM_BYTES:]
    if len(checksum) < _CHECKSUM_BYTES or zlib.crc32(content) != int.from_bytes(checksum):
        _log.warning("%s: a damaged copy is fetched again", copy)
        return None
    return content


def _gist(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
