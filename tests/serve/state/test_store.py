"""The stores that keep images."""

import hashlib
import os
import time

import pytest
from upath import UPath

from mst.errors import ConfigError
from serve.errors import OverloadedError
from serve.state.store import BucketStore, FolderStore, check_shared, name_of, open_store


def test_both_stores_keep_images_and_sweep_what_is_old_or_too_much(tmp_path, s3):
    bucket = s3.upload(tmp_path / "nothing")
    for place in (str(tmp_path / "images"), f"{bucket}/images"):
        store = open_store(place, 3.0, 2500)
        assert store.sweep() == 0
        first, second = (store.put(bytes([number]) * 1000) for number in range(2))
        store.sweep()
        assert [store.get(each) for each in (first, second)] == [bytes([0]) * 1000, bytes([1]) * 1000]
        assert store.get("../" + first) is None
        assert store.get("0" * 64) is None
        time.sleep(1.1)  # S3 tells seconds
        assert store.put(bytes([0]) * 1000) == first
        third = store.put(bytes([2]) * 1000)
        store.sweep()
        assert store.get(second) is None  # the oldest, since the first was uploaded again
        assert store.get(first) is not None
        time.sleep(3.1)
        assert store.sweep() == 2
        assert store.get(third) is None
        assert store.sweep() == 0


def test_a_folder_is_swept_while_it_fills_and_of_what_a_killed_writer_left(tmp_path):
    store = FolderStore(tmp_path, 1000, 10_000)
    for number in range(100):
        store.put(number.to_bytes(1000, "big"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000 * 17 / 16
    (tmp_path / ".mst-left").write_bytes(b"half")
    os.utime(tmp_path / ".mst-left", (0, 0))
    store.sweep()
    assert not (tmp_path / ".mst-left").exists()


def test_an_image_whose_file_is_damaged_is_not_there_until_it_is_stored_again(tmp_path, s3):
    """As after a power cut, or where somebody wrote into the folder."""
    bucket = f"{s3.upload(tmp_path / 'nothing')}/damaged"
    for place in (str(tmp_path / "images"), bucket):
        store = open_store(place, 60.0, 10**6)
        image_id = store.put(b"image" * 100)
        path = UPath(place) / image_id
        for damaged in (b"", b"image" * 99, b"IMAGE" * 100):
            path.write_bytes(damaged)
            assert store.get(image_id) is None, place
        path.write_bytes(b"")
        store.put(b"image" * 100)
        assert store.get(image_id) == b"image" * 100


def test_a_bucket_is_not_written_to_at_each_upload(tmp_path, s3):
    store = open_store(f"{s3.upload(tmp_path / 'nothing')}/often", 60.0, 10**6)
    written = []
    put, store._files.pipe_file = store._files.pipe_file, lambda *each: (written.append(each), put(*each))
    for _ in range(3):
        store.put(b"image" * 100)
    assert len(written) == 1


def test_of_all_replicas_one_sweeps_now_and_then(tmp_path, s3):
    for place in (str(tmp_path / "images"), f"{s3.upload(tmp_path / 'nothing')}/swept"):
        replicas = [open_store(place, 60.0, 10**6) for _ in range(3)]
        image_id = replicas[0].put(b"image")
        assert [each.is_to_be_swept(3) for each in replicas] == [True, False, False]
        time.sleep(4.1)  # S3 tells seconds
        assert [each.is_to_be_swept(3) for each in replicas[::-1]] == [True, False, False]
        assert replicas[1].sweep() == 0
        assert replicas[0].get(image_id) == b"image"


def test_a_folder_that_nodes_do_not_share_is_refused(tmp_path):
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    assert name_of(mine) == name_of(mine) != name_of(other)
    check_shared(mine, name_of(mine))
    for elsewhere in (other, str(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match=f"image_store {elsewhere} on .* all nodes share, or s3://"):
            check_shared(elsewhere, name_of(mine))
    check_shared("s3://bucket/images", name_of("s3://bucket/images"))
    open_store(mine, 0.0, 0).sweep()
    check_shared(mine, name_of(mine))


def test_a_folder_keeps_what_is_not_the_stores(tmp_path):
    photo, folder = tmp_path / "holiday.jpg", tmp_path / "lost+found"
    photo.write_bytes(b"mine")
    folder.mkdir()
    for path in (photo, folder):
        os.utime(path, (0, 0))
    assert FolderStore(tmp_path, 10, 1).sweep() == 0
    assert (photo.exists(), folder.exists()) == (True, True)


def test_a_folder_that_was_cleared_away_or_cannot_be_read_can_be_asked_again(tmp_path):
    store = FolderStore(tmp_path / "images", 10, 10_000)
    (tmp_path / "images").rmdir()
    assert store.sweep() == 0
    assert store.get(store.put(b"image")) == b"image"
    (tmp_path / "images" / hashlib.sha256(b"other").hexdigest()).mkdir()
    with pytest.raises(OverloadedError, match="the image store does not answer"):
        store.get(hashlib.sha256(b"other").hexdigest())


def test_a_bucket_that_is_away_is_a_reason_to_try_again(door):
    store = BucketStore(str(UPath("s3://nowhere/images")), 10, 10)
    with pytest.raises(OverloadedError, match="the image store does not answer"):
        store.put(b"image")


def test_the_store_knows_no_file_but_its_images(tmp_path):
    (tmp_path / "secret").write_text("secret")
    store = FolderStore(tmp_path / "images", 10, 1000)
    image_id = store.put(b"bytes")
    assert store.get(image_id) == b"bytes"
    assert [path.name for path in (tmp_path / "images").iterdir()] == [image_id]
    for wrong in ("../secret", "secret", "", image_id.upper(), image_id + "\n"):
        assert store.get(wrong) is None
