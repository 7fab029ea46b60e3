"""The index: what is written is read again, by any worker, and a damaged one is refused."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from mst.data.index import IMAGES, MANIFEST, ROWS, SCHEMA, Index, to_batch, write_index
from mst.data.sources import read_records, read_samples
from mst.errors import ConfigError, DataError

SOURCES = ["lvis:annotations/lvis_train.json", "coco:annotations/instances_train.json"]


@pytest.fixture
def indexed(scenes, tmp_path):
    """The scenes' records, and the folder of an index of them."""
    records = read_records(SOURCES, UPath(scenes))
    write_index(tmp_path / "index", [to_batch(records, UPath(scenes))], {"sources": [], "rules": {}})
    return records, UPath(tmp_path / "index")


def test_records_come_back_as_they_were(indexed, scenes):
    records, folder = indexed
    index = Index(folder, UPath(scenes))
    assert len(index) == len(records)
    assert index.manifest["counts"]["objects"] == sum(len(record.objects) for record in records)
    for found, record in zip(index, records, strict=True):
        assert (str(found.path), found.height, found.width) == (str(record.path), record.height, record.width)
        assert [each.name for each in found.objects] == [each.name for each in record.objects]
        for one, other in zip(found.objects, record.objects, strict=True):
            assert one.area == other.area
            np.testing.assert_allclose(one.box, other.box, rtol=1e-6)
            np.testing.assert_array_equal(one.decode(), other.decode())
    assert index[-1].path == index[len(index) - 1].path
    assert [each.path for each in index[2:5]] == [index[i].path for i in (2, 3, 4)]
    with pytest.raises(IndexError, match="no number 12"):
        index[len(index)]


def test_rows_are_found_across_batches(indexed, scenes, tmp_path):
    records, _ = indexed
    batch = to_batch(records, UPath(scenes))
    repeated = [batch] * (2 * ROWS // len(records) + 1)
    write_index(tmp_path / "many", repeated, {})
    index = Index(UPath(tmp_path / "many"), UPath(scenes))
    assert len(index) == len(repeated) * len(records) > 2 * ROWS
    for number in (0, ROWS - 1, ROWS, 2 * ROWS - 1, 2 * ROWS, len(index) - 1):
        assert index[number].path.name == records[number % len(records)].path.name


def test_a_pickled_index_is_its_address(indexed, scenes):
    index = Index(indexed[1], UPath(scenes))
    pickled = pickle.dumps(index)
    assert len(pickled) < 1000
    assert pickle.loads(pickled)[3].path == index[3].path


def test_training_reads_it_and_takes_no_other_source_beside_it(indexed, scenes):
    records, folder = indexed
    assert isinstance(read_records([f"index:{folder}"], UPath(scenes)), Index)
    samples = read_samples([f"index:{folder}"], UPath(scenes))
    assert len(samples) == sum(len(record.objects) for record in records)
    with pytest.raises(ConfigError, match="stands alone"):
        read_records([f"index:{folder}", *SOURCES], UPath(scenes))


def test_an_unfinished_or_damaged_index_is_refused(indexed, scenes, tmp_path):
    _, folder = indexed
    with pytest.raises(DataError, match=r"no index, which has manifest.json"):
        Index(UPath(tmp_path), UPath(scenes))
    content = (folder / IMAGES).read_bytes()
    for damaged in (content[:-100], content[: len(content) // 2], content + b"more"):
        (folder / IMAGES).write_bytes(damaged)
        with pytest.raises(DataError, match="prepare the index anew"):
            Index(folder, UPath(scenes))
    (folder / IMAGES).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Index(folder, UPath(scenes))


def test_paths_of_an_index_that_leave_the_root_are_refused(indexed, scenes, tmp_path):
    records, _ = indexed
    table = to_batch(records[:1], UPath(scenes)).to_pylist()
    for path in ("../secret.jpg", "/etc/passwd", "train/../../x.jpg"):
        rows = pa.RecordBatch.from_pylist([{**table[0], "path": path}], schema=SCHEMA)
        folder = tmp_path / path.replace("/", "_")
        write_index(folder, [rows], {})
        with pytest.raises(DataError, match="leads outside"):
            Index(UPath(folder), UPath(scenes))[0]


def test_images_outside_the_root_cannot_be_indexed(indexed, scenes, tmp_path):
    with pytest.raises(DataError, match="outside the data root"):
        to_batch(indexed[0], UPath(scenes / "annotations"))


def test_an_index_is_not_written_over(indexed, scenes):
    with pytest.raises(DataError, match="exists already"):
        write_index(indexed[1], [], {})
