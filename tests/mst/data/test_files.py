"""Reading from stores, against real servers on this machine: one of S3 and one of HTTP."""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import torch
from torch.utils.data import DataLoader
from upath import UPath

from mst.config import Config
from mst.data import files
from mst.data.files import fetch, names
from mst.data.index import IMAGES, to_batch, write_index
from mst.data.pixels.images import read_image
from mst.data.readers.coco import check_images
from mst.data.sampling.sampler import SampleKey, Shard, ShardedBatches
from mst.data.sampling.training_set import Batch, TrainingSet
from mst.data.sources import read_records, read_samples
from mst.errors import DataError, ImageError
from tests.conftest import NUMBER, images
from tests.stores import Away, impatient

COCO = ["coco:annotations/instances_train.json"]
SOON = 30.0  # seconds within which an error comes that nobody waits for


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


# Outages


def epoch(training_set: TrainingSet, workers: int = 0) -> DataLoader:
    batches = ShardedBatches(NUMBER, 48, 4, micro_batches=1, seed=0, epoch=0, shard=Shard())
    return DataLoader(training_set, batch_sampler=batches, num_workers=workers, timeout=120 * bool(workers))


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
