"""Copies of remote files in a folder, which any number of processes share."""

import fcntl
import hashlib
import logging
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from upath import UPath

from mst.data.files import Fetch, fetch, gist, is_remote

_log = logging.getLogger(__name__)

_KEPT = 0.9  # share of a cache's limit that is left when copies had to be removed
_ABANDONED = 600.0  # seconds after which a part was left by a killed process
_CHECKSUM_BYTES = 4


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
                _log.warning("%s: cannot keep copies (%s)", self._folder, gist(error))
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
