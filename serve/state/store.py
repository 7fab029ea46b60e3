"""Images by content: an image's id is the sha256 of its bytes, so storing it twice is storing it once.

An image lives for some time from its last upload, and the oldest go first where there are too many bytes.
Whoever still needs one that has gone uploads it again: the id is the same.
"""

import contextlib
import hashlib
import logging
import os
import platform
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import fsspec

from mst.errors import ConfigError
from serve.errors import OverloadedError

_ID = re.compile(r"[0-9a-f]{64}")
_OFTEN = 16  # an object's life is prolonged so many times in it, not at each upload
_PART = ".mst-"
"""Begins the name of a file that is being written."""
_SWEPT = ".swept"
"""Names what was written at the last sweep, by whichever replica."""
_NAME = ".store"
"""Names the file that tells a folder from any other."""

_log = logging.getLogger("ray.serve.store")


class ImageStore(Protocol):
    """Image files, shared by all replicas."""

    def put(self, data: bytes) -> str:
        """Store an image's bytes, or prolong their life, and return their id."""

    def get(self, image_id: str) -> bytes | None:
        """Return an image's bytes; None where there is no such image."""

    def is_to_be_swept(self, seconds: float) -> bool:
        """Whether no replica has swept for so long; whoever is told so is the one that does."""

    def sweep(self) -> int:
        """Delete what is too old or too much; return how many images went."""


def open_store(url: str, ttl: float, max_bytes: int) -> ImageStore:
    """Open the store at a folder's path, or at `s3://bucket/prefix`.

    Args:
        url: where it is; a folder is made where there is none.
        ttl: seconds that an image lives from its last upload.
        max_bytes: of all images together.
    """
    if "://" in url:
        return BucketStore(url, ttl, max_bytes)
    return FolderStore(Path(url), ttl, max_bytes)


def name_of(url: str) -> str:
    """Return what tells a folder from any other, and write it there at first; a bucket needs no such name."""
    if "://" in url:
        return ""
    folder = Path(url)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _NAME).exists():
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=_PART) as file:
            file.write(uuid.uuid4().hex)
            file.flush()
            with contextlib.suppress(FileExistsError):  # another one was faster
                os.link(file.name, folder / _NAME)
    return (folder / _NAME).read_text()


def check_shared(url: str, name: str) -> None:
    """Check on one node that a store is the one that another node named.

    Raises:
        ConfigError: it is a folder of this node alone.
    """
    path = Path(url) / _NAME
    if name and (path.read_text() if path.exists() else "") != name:
        raise ConfigError(
            f"image_store {url} on {platform.node()} is not the folder of the node that set the server up: "
            "give a folder that all nodes share, or s3://bucket/prefix; where it was emptied, deploy again"
        )


class _Stored(NamedTuple):
    name: str
    size: int
    uploaded: float  # seconds since 1970


def _to_delete(stored: Iterable[_Stored], ttl: float, max_bytes: int) -> list[str]:
    """The names of images that are too old, and of the oldest of the others if they are too much."""
    kept, gone, oldest = 0, [], time.time() - ttl
    for each in sorted(stored, key=lambda each: each.uploaded, reverse=True):
        kept += each.size
        if each.uploaded < oldest or kept > max_bytes:
            gone.append(each.name)
    return gone


class FolderStore:
    """A folder of image files, named by their sha256.

    Args:
        folder: made where it is not there.
        ttl: seconds that an image lives from its last upload.
        max_bytes: of all images together; exceeded by a sixteenth at most.
    """

    def __init__(self, folder: Path, ttl: float, max_bytes: int) -> None:
        self._folder, self._ttl, self._max_bytes = folder, ttl, max_bytes
        self._new_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store an image's bytes, or prolong their life, and return their id."""
        image_id = hashlib.sha256(data).hexdigest()
        path = self._folder / image_id
        with _reached():
            try:
                is_there = path.read_bytes() == data  # a machine that lost power may have left less
                if is_there:
                    os.utime(path)
            except FileNotFoundError:
                is_there = False
            if not is_there:
                self._write(image_id, data)
        if self._new_bytes > self._max_bytes / 16:
            self.sweep()
        return image_id

    def get(self, image_id: str) -> bytes | None:
        """Return an image's bytes; None where there is no such image."""
        return _found(image_id, (self._folder / image_id).read_bytes)

    def is_to_be_swept(self, seconds: float) -> bool:
        """Whether no replica has swept for so long; whoever is told so is the one that does."""
        mark = self._folder / _SWEPT
        with _reached():
            try:
                is_due = time.time() - mark.stat().st_mtime >= seconds
            except FileNotFoundError:
                is_due = self._folder.is_dir()
            if is_due:
                mark.touch()
        return is_due

    def sweep(self) -> int:
        """Delete what is too old or too much, and what a killed writer left; return how many files went.

        Files of other names are not ours, and stay.
        """
        self._new_bytes = 0
        with _reached():
            gone = _to_delete(self._stored(), self._ttl, self._max_bytes)
            for name in gone:
                (self._folder / name).unlink(missing_ok=True)
        return len(gone)

    def _write(self, image_id: str, data: bytes) -> None:
        """Written beside and renamed: another replica sees the whole file or none."""
        self._folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleared it away
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=_PART, delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._folder / image_id)
        self._new_bytes += len(data)

    def _stored(self) -> Iterator[_Stored]:
        for entry in os.scandir(self._folder) if self._folder.is_dir() else ():
            if _ID.fullmatch(entry.name) or entry.name.startswith(_PART):
                with contextlib.suppress(FileNotFoundError):  # another replica sweeps too
                    yield _Stored(entry.name, entry.stat().st_size, entry.stat().st_mtime)


class BucketStore:
    """Objects in a bucket, by fsspec; credentials and endpoint are those that s3fs finds.

    Args:
        url: as in `s3://bucket/prefix`.
        ttl: seconds that an image lives from its last upload.
        max_bytes: of all images together; exceeded until the next sweep.
    """

    def __init__(self, url: str, ttl: float, max_bytes: int) -> None:
        self._files, self._root = fsspec.url_to_fs(url.rstrip("/"))
        self._ttl, self._max_bytes = ttl, max_bytes

    def put(self, data: bytes) -> str:
        """Store an image's bytes, or prolong their life, and return their id."""
        image_id = hashlib.sha256(data).hexdigest()
        path = f"{self._root}/{image_id}"
        with _reached():
            if not self._is_new(path, len(data)):
                self._files.pipe_file(path, data)  # whole or not at all
        return image_id

    def _is_new(self, path: str, size: int) -> bool:
        """Whether an object was written so lately that its life need not be prolonged."""
        try:
            self._files.invalidate_cache()  # another replica may have swept it away
            found = self._files.info(path)
        except FileNotFoundError:
            return False
        age = time.time() - found["LastModified"].timestamp()
        return bool(found["size"] == size and age < self._ttl / _OFTEN)

    def get(self, image_id: str) -> bytes | None:
        """Return an image's bytes; None where there is no such image."""
        return _found(image_id, lambda: bytes(self._files.cat_file(f"{self._root}/{image_id}")))

    def is_to_be_swept(self, seconds: float) -> bool:
        """Whether no replica has swept for so long; whoever is told so is the one that does."""
        mark = f"{self._root}/{_SWEPT}"
        with _reached():
            self._files.invalidate_cache()
            try:
                is_due = time.time() - self._files.info(mark)["LastModified"].timestamp() >= seconds
            except FileNotFoundError:
                is_due = True
            if is_due:
                self._files.pipe_file(mark, b"")
        return is_due

    def sweep(self) -> int:
        """Delete what is too old or too much; return how many images went."""
        with _reached():
            self._files.invalidate_cache()  # other replicas store images too
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:  # nothing was stored yet
                return 0
            stored = [
                _Stored(each["name"], each["size"], each["LastModified"].timestamp())
                for each in found
                if _ID.fullmatch(each["name"].rsplit("/", 1)[-1])
            ]
            gone = _to_delete(stored, self._ttl, self._max_bytes)
            if gone:
                self._files.rm(gone)
        return len(gone)


def _found(image_id: str, read: Callable[[], bytes]) -> bytes | None:
    """What an image's file holds; None where there is no such image, or its file holds something else."""
    if not _ID.fullmatch(image_id):
        return None
    with _reached():
        try:
            data = read()
        except FileNotFoundError:
            return None
    if hashlib.sha256(data).hexdigest() != image_id:
        _log.error("the image store holds other bytes than it was given under %s", image_id)
        return None  # whoever has the image stores it again
    return data


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Whatever else goes wrong in a store is that it cannot be reached now."""
    try:
        yield
    except Exception as error:
        _log.exception("the image store")
        raise OverloadedError("the image store does not answer") from error
