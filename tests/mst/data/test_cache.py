"""Copies of what lies in a store, against a real S3 on this machine."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from upath import UPath

from mst.data import cache as cache_module
from mst.data.cache import FileCache, reader
from mst.data.files import fetch
from tests.conftest import NUMBER, images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.suffix]


def taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in copies(folder))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[UPath]:
    """The files that were fetched from a store."""
    found: list[UPath] = []

    def spy(path: UPath) -> bytes:
        found.append(path)
        return fetch(path)

    monkeypatch.setattr(cache_module, "fetch", spy)
    return found


def test_a_copy_is_read_without_the_store(remote, folder, door, scenes):
    before = reader(str(folder), 1.0)
    contents = [before(path) for path in images(remote)]
    door.kill()
    again = FileCache(folder, 10**9)
    assert [again(path) for path in images(remote)] == contents
    assert contents == [path.read_bytes() for path in images(UPath(scenes))]


def test_files_of_this_machine_are_not_copied(scenes, folder):
    assert FileCache(folder, 10**9)(images(UPath(scenes))[0])
    assert not copies(folder)


@pytest.mark.parametrize(
    "damage",
    [lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]), lambda stored: stored[:-100], lambda _: b""],
    ids=["flipped", "truncated", "empty"],
)
def test_a_damaged_copy_is_repaired(uploaded, folder, fetched, damage, caplog):
    cache, path = FileCache(folder, 10**9), images(uploaded)[0]
    content = cache(path)
    (copy,) = copies(folder)
    copy.write_bytes(damage(copy.read_bytes()))
    assert [cache(path), cache(path)] == [content, content]
    assert fetched == [path, path]
    assert f"{copy}: a damaged copy is fetched again" in caplog.text


def test_copies_stay_under_the_limit_whichever_processes_write_them(uploaded, folder, scenes):
    content = {path.name: path.read_bytes() for path in images(UPath(scenes))}
    limit = sum(map(len, content.values())) // 3
    cache = FileCache(folder, limit)
    order = [images(uploaded)[int(i)] for i in torch.randint(NUMBER, (160,))]
    most = 0
    with multiprocessing.get_context("spawn").Pool(4) as pool:  # pickles the cache itself
        running = pool.map_async(cache, order, chunksize=4)
        while not running.ready():
            with cache._locked():
                most = max(most, taken(folder))
            time.sleep(0.001)
        assert running.get() == [content[path.name] for path in order]
    assert limit / 3 < most <= limit
    assert taken(folder) <= int((folder / "total.bytes").read_text()) <= limit
    assert not list(folder.glob("*.part"))


def test_room_is_made_before_a_copy_comes(uploaded, folder, monkeypatch):
    replace, seen = Path.replace, []

    def watched(self: Path, target: Path) -> Path:
        moved = replace(self, target)
        seen.append(taken(folder))
        assert int((folder / "total.bytes").read_text()) >= seen[-1]
        return moved

    monkeypatch.setattr(Path, "replace", watched)
    cache = FileCache(folder, 60_000)
    for path in images(uploaded):
        cache(path)
    assert len(seen) == NUMBER
    assert 30_000 < max(seen) <= 60_000


def test_a_process_killed_before_it_counted_does_not_break_the_limit(uploaded, folder):
    cache = FileCache(folder, 60_000)
    for path in images(uploaded):
        (folder / "total.bytes").unlink()
        cache(path)
        assert taken(folder) <= 60_000


def test_a_lower_limit_holds_from_the_start(uploaded, folder):
    cache = FileCache(folder, 10**9)
    for path in images(uploaded):
        cache(path)
    FileCache(folder, 50_000)
    assert 0 < taken(folder) <= 50_000


def test_a_file_larger_than_the_limit_is_read_and_not_kept(uploaded, folder, fetched):
    path = images(uploaded)[0]
    size = len(fetch(path))
    cache = FileCache(folder, size)  # the checksum is too much
    assert len(cache(path)) == len(cache(path)) == size
    assert fetched == [path, path]
    assert not copies(folder)


def test_the_least_recently_used_copy_goes_first(uploaded, folder, fetched):
    paths = images(uploaded)[:4]
    sizes = [len(fetch(path)) for path in paths]
    cache = FileCache(folder, sum(sizes[:3]) + max(sizes) // 2)
    for path in paths[:3]:
        cache(path)
    cache(paths[0])
    cache(paths[3])  # no room, so that the copy of 1 goes
    del fetched[:]
    for path in (paths[0], paths[3]):
        cache(path)
    assert not fetched
    cache(paths[1])
    assert fetched == [paths[1]]


def test_parts_of_a_killed_process_do_not_count_and_are_swept_when_old(uploaded, folder):
    cache = FileCache(folder, 10**6)
    for name, age in (("old.part", 2 * cache_module._ABANDONED), ("young.part", 0)):
        (folder / name).write_bytes(bytes(10**6))
        os.utime(folder / name, (time.time() - age,) * 2)
    cache(images(uploaded)[0])
    assert len(copies(folder)) == 1
    FileCache(folder, 10**6)
    assert [path.name for path in folder.glob("*.part")] == ["young.part"]
    assert len(copies(folder)) == 1


def test_a_full_disk_costs_the_copies_alone(uploaded, folder, scenes, monkeypatch, caplog):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = FileCache(folder, 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "NamedTemporaryFile", full)
        contents = [cache(path) for path in images(uploaded)]
    assert contents == [path.read_bytes() for path in images(UPath(scenes))]
    assert caplog.text.count("cannot keep copies") == 1
    assert "No space left" in caplog.text
    cache(images(uploaded)[0])  # there is space again
    assert len(copies(folder)) == 1


def test_a_copy_that_cannot_be_finished_leaves_no_part(uploaded, folder, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = FileCache(folder, 10**9)
    monkeypatch.setattr(Path, "replace", full)
    assert cache(images(uploaded)[0])
    assert not list(folder.glob("*.part"))
    assert "cannot keep copies" in caplog.text


def test_a_folder_that_cannot_be_made_costs_the_copies_alone(uploaded, tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    cache = FileCache(tmp_path / "file" / "cache", 10**9)
    assert all(cache(path) for path in images(uploaded)[:3])
    assert caplog.text.count("cannot keep copies") == 1
