"""Reading from stores, against real servers on this machine: one of S3 and one of HTTP."""

import errno
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import torch
from conftest import S3, Server, free_port
from torch.utils.data import DataLoader
from upath import UPath

from mst.config import Config
from mst.data import files
from mst.data.coco import check_images
from mst.data.files import FileCache, fetch, names, reader
from mst.data.images import read_image
from mst.data.index import IMAGES, to_batch, write_index
from mst.data.sampler import SampleKey, Shard, ShardedBatches
from mst.data.sources import read_records, read_samples
from mst.data.training_set import Batch, TrainingSet
from mst.errors import DataError, ImageError

COCO = ["coco:annotations/instances_train.json"]
NUMBER = 12
Away = Callable[[str, float], None]
SOON = 30.0  # seconds within which an error comes that nobody waits for


@pytest.fixture(scope="module")
def uploaded(s3: S3, scenes: Path) -> UPath:
    return s3.upload(scenes)


@pytest.fixture(scope="module")
def door(s3: S3) -> Iterator[Server]:
    """Forwards to S3, so that it can be shut and keep what it holds."""
    port = free_port()
    door = Server(Path(__file__).with_name("door.py"), port, s3.port, port=port)
    yield door
    door.kill()


@pytest.fixture
def remote(uploaded: UPath, door: Server) -> Iterator[UPath]:
    """The scenes behind the door, which is open again after each test."""
    yield UPath(uploaded, endpoint_url=door.url)
    door.kill()
    door.start()


def images(root: UPath) -> list[UPath]:
    return [root / "train" / f"{number:012d}.jpg" for number in range(NUMBER)]


def same(one: Batch, other: Batch) -> bool:
    return all(map(torch.equal, one, other))


def took(start: float) -> float:
    return time.monotonic() - start


# Formats and stores


def test_a_data_set_in_a_store_is_the_one_in_a_folder(uploaded, scenes, config):
    here, there = (read_records(COCO, root) for root in (UPath(scenes), uploaded))
    assert [record.objects for record in here] == [record.objects for record in there]
    assert [str(record.path) for record in there] == [str(path) for path in images(uploaded)]
    local, remote = TrainingSet(here, config), TrainingSet(there, config, fetch)
    for position in range(NUMBER):
        key = SampleKey(0, position, position)
        assert same(local[key], remote[key])


def test_samples_of_an_evaluation_come_from_a_store(uploaded, scenes):
    for here, there in zip(
        *(read_samples(["lvis:annotations/lvis_val.json"], root) for root in (UPath(scenes), uploaded)),
        strict=True,
    ):
        assert here.name == there.name
        assert (here.image == there.image).all()
        assert (here.mask == there.mask).all()


@pytest.fixture
def index(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = UPath(scenes)
    write_index(tmp_path / "index", [to_batch(read_records(COCO, root), root)], {})
    return tmp_path / "index"


def test_an_index_and_its_images_lie_in_stores(index, uploaded, scenes, s3, config):
    here = TrainingSet(read_records([f"index:{index}"], UPath(scenes)), config)
    there = TrainingSet(read_records([f"index:{s3.upload(index)}"], uploaded), config)
    for position in range(NUMBER):
        key = SampleKey(0, position, position)
        assert same(here[key], there[key])


def test_an_index_without_its_rows_says_so(index, uploaded, s3):
    (index / IMAGES).unlink()
    with pytest.raises(DataError, match=rf"s3://.*/{IMAGES}: not readable"):
        read_records([f"index:{s3.upload(index)}"], uploaded)


@contextmanager
def serving(handler: object) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_images_come_from_a_web_server_that_lists_folders(scenes, config):
    here = read_records(COCO, UPath(scenes))
    with serving(partial(Quiet, directory=str(scenes))) as url:
        mixed = read_records([f"{COCO[0]}?images={url}/train"], UPath(scenes))
        there = read_records(COCO, UPath(url))
        local, *others = (TrainingSet(records, config) for records in (here, mixed, there))
        for key in (SampleKey(0, position, position) for position in range(NUMBER)):
            assert all(same(local[key], other[key]) for other in others)


def test_names_behind_a_web_server_are_those_of_the_files(tmp_path):
    (tmp_path / "a b é.jpg").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with serving(partial(Quiet, directory=str(tmp_path))) as url:
        assert names(UPath(url)) == names(UPath(tmp_path)) == {"a b é.jpg", "folder"}
        assert fetch(UPath(url) / "a b é.jpg") == b"x"


class Unlisted(Quiet):
    def list_directory(self, path: object) -> None:
        self.send_error(403)


class Blank(Quiet):
    def list_directory(self, path: object) -> None:
        self.send_error(404)


@pytest.mark.parametrize(
    ("handler", "message"),
    [(Unlisted, "cannot be read .403"), (Blank, "the server lists no files there")],
)
def test_a_web_server_that_lists_no_folders_is_told_from_missing_images(scenes, handler, message):
    start = time.monotonic()
    with (
        serving(partial(handler, directory=str(scenes))) as url,
        pytest.raises(DataError, match=rf"{url}/train.*: {message}"),
    ):
        read_records([f"{COCO[0]}?images={url}/train"], UPath(scenes))
    assert took(start) < SOON


# What is wrong at once


def test_a_missing_file_is_named_at_once(uploaded):
    start = time.monotonic()
    with pytest.raises(ImageError, match=rf"{uploaded}/absent.jpg: "):
        read_image(uploaded / "absent.jpg")
    paths = [uploaded / "nowhere" / "a.jpg", *images(uploaded)]
    with pytest.raises(DataError, match=rf"1 of 13 images are missing, the first is {paths[0]}"):
        check_images(paths, uploaded)
    assert took(start) < SOON


def test_an_absent_bucket_is_named_at_once(uploaded):
    start = time.monotonic()
    with pytest.raises(DataError, match="data root s3://no-bucket/data is no folder"):
        read_records(COCO, UPath("s3://no-bucket/data"))
    with pytest.raises(ImageError, match=r"s3://no-bucket/a.jpg: .*bucket does not exist"):
        read_image(UPath("s3://no-bucket/a.jpg"))
    assert took(start) < SOON


def test_wrong_credentials_are_told_at_once(uploaded, s3):
    httpx.post(f"{s3.url}/moto-api/reset-auth", content="0")  # from now on they are checked
    start = time.monotonic()
    try:
        with pytest.raises(DataError, match=rf"{uploaded}: cannot be looked up .*Key Id you provided"):
            read_records(COCO, UPath(uploaded, key="wrong", secret="wrong"))
        with pytest.raises(ImageError, match=r"000000000000.jpg: .*Key Id you provided"):
            read_image(images(UPath(uploaded, key="wrong", secret="wrong"))[0])
    finally:
        httpx.post(f"{s3.url}/moto-api/reset-auth", content="inf")
    assert took(start) < SOON


def test_lacking_credentials_are_told_at_once(uploaded, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    root, start = UPath(uploaded, use_ssl=False), time.monotonic()  # another client than the other tests'
    for read in (partial(read_records, COCO), fetch):
        with pytest.raises(DataError, match=rf"{uploaded}.*Unable to locate credentials"):
            read(root)
    assert took(start) < SOON


def test_an_unknown_kind_of_store_is_told_at_once():
    start = time.monotonic()
    with pytest.raises(DataError, match=r"s3://bucket/a: cannot be read .*Invalid endpoint"):
        fetch(UPath("s3://bucket/a", endpoint_url="no url"))
    assert took(start) < SOON


# The cache


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

    monkeypatch.setattr(files, "fetch", spy)
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
    for name, age in (("old.part", 2 * files._ABANDONED), ("young.part", 0)):
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
        patch.setattr(files, "NamedTemporaryFile", full)
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


# Outages


def epoch(training_set: TrainingSet, workers: int = 0) -> DataLoader:
    batches = ShardedBatches(NUMBER, 48, 4, micro_batches=1, seed=0, epoch=0, shard=Shard())
    return DataLoader(training_set, batch_sampler=batches, num_workers=workers, timeout=120 * bool(workers))


def impatient(monkeypatch: pytest.MonkeyPatch, silence: float = 0.5) -> None:
    """Take a store that says nothing for so long for a failing one."""
    monkeypatch.setitem(files._CLIENTS["s3"]["config_kwargs"], "read_timeout", silence)


@pytest.fixture
def away(remote: UPath, door: Server) -> Iterator[Away]:
    """Takes the store away; it comes back by itself, before the test is over at the latest."""
    outages, over = [], threading.Event()

    def run(kind: str, seconds: float, gone: threading.Event) -> None:
        if kind == "stalled":
            with door.stalled():
                gone.set()
                over.wait(seconds)
        else:
            door.kill()
            gone.set()
            over.wait(seconds)
            door.start()

    def start(kind: str, seconds: float) -> None:
        gone = threading.Event()
        outages.append(threading.Thread(target=run, args=(kind, seconds, gone)))
        outages[-1].start()
        gone.wait()

    yield start
    over.set()
    for each in outages:
        each.join()


def check_outage(kind: str, seconds: float, remote: UPath, away: Away, scenes: Path, config: Config) -> None:
    undisturbed = list(epoch(TrainingSet(read_records(COCO, UPath(scenes)), config)))
    batches = []
    for batch in epoch(TrainingSet(read_records(COCO, remote), config), workers=2):
        batches.append(Batch(*batch))
        if len(batches) == 2:
            start = time.monotonic()
            away(kind, seconds)
    assert took(start) > seconds  # so the epoch did meet it
    assert len(batches) == len(undisturbed) == 12
    assert all(same(one, other) for one, other in zip(batches, undisturbed, strict=True))
    assert not any(batch.skipped.any() for batch in batches)


@pytest.mark.parametrize("kind", ["killed", "stalled"])
def test_an_epoch_outlasts_an_outage(kind, remote, away, scenes, config, monkeypatch):
    impatient(monkeypatch)
    check_outage(kind, 3, remote, away, scenes, config)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["killed", "stalled"])
def test_an_epoch_outlasts_a_long_outage(kind, remote, away, scenes, config):
    check_outage(kind, 30, remote, away, scenes, config)


@pytest.mark.parametrize("kind", ["killed", "stalled"])
def test_a_store_that_stays_away_is_an_error_and_no_other_image(kind, remote, away, config, monkeypatch):
    impatient(monkeypatch)
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    training_set = TrainingSet(read_records(COCO, remote), config)
    away(kind, 60)
    start = time.monotonic()
    batches = iter(epoch(training_set, workers=2))
    with pytest.raises(DataError, match=rf"{remote}/train/\d+.jpg: cannot be reached"):
        list(batches)
    assert 0.5 < took(start) < SOON
    batches._shutdown_workers()  # torch waits long for them where the garbage collector has to do it


def test_the_start_waits_for_a_store_too(remote, away):
    away("killed", 1)
    assert len(read_records(COCO, remote)) == NUMBER


def test_a_web_server_that_says_nothing_is_given_up(monkeypatch, scenes):
    asked, done = [], threading.Event()

    class Silent(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            done.wait(10)

    timeout = files.ClientTimeout(total=None, sock_read=0.3)
    monkeypatch.setitem(files._CLIENTS, "http", {"client_kwargs": {"timeout": timeout}})
    with serving(Silent) as url:
        with pytest.raises(DataError, match=rf"{url}/a.jpg: cannot be reached"):
            fetch(UPath(f"{url}/a.jpg"), patience=1.0)
        done.set()
    assert len(asked) >= 2


# Forked workers


def test_workers_read_after_their_parent_has_read(uploaded, scenes, config):
    records = read_records(COCO, uploaded)
    for record in records:
        assert record.path.exists()  # so that the path has a client of its own too
        record.read()
    batches = list(epoch(TrainingSet(records, config), workers=2))
    local = epoch(TrainingSet(read_records(COCO, UPath(scenes)), config))
    assert all(same(Batch(*one), other) for one, other in zip(batches, local, strict=True))
    start = time.monotonic()
    records[0].read()  # the workers' end has not closed what they inherited
    assert took(start) < files._SILENCE
