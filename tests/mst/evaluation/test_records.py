from dataclasses import fields, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mst.clicks import Click
from mst.errors import DataError
from mst.evaluation import ObjectRecord, records
from mst.evaluation.records import SCHEMA, read_table, write_table

RECORDS = [
    ObjectRecord(
        name=f"ø {number}",
        image_id=f"ø {number}",
        height=480,
        width=854,
        area_share=1 / 3,
        extent=(1 / 7, 0.5),
        size_class="large",
        init_iou=0.5 if number else None,
        clicks=tuple(Click(click, 7 * click, click % 2 == 0) for click in range(number)),
        ious=tuple(1 / (click + 3) for click in range(number)),
        boundary_ious=tuple(1 / (click + 7) for click in range(number)),
        masks=(b"1234O", b"\x00\xff")[:number],
        seconds_model=(0.125,) * number,
        seconds_total=(0.25,) * number,
        seconds_encoding=(0.0625,) * number,
        seconds_opening=0.03125 * number,
    )
    for number in range(4)
]
ABOUT = {"model": "runs/a", "eval.threshold": "0.49", "skipped": '["b: the mask is empty"]'}


def test_what_is_read_back_equals(tmp_path):
    path = tmp_path / "new" / "records.parquet"
    write_table(path, RECORDS, ABOUT)
    assert read_table(path) == (RECORDS, ABOUT)
    write_table(path, [], {})
    assert read_table(path) == ([], {})
    assert [each.name for each in path.parent.iterdir()] == ["records.parquet"]


def test_every_field_of_a_record_is_a_column():
    assert SCHEMA.names == [each.name for each in fields(ObjectRecord)]


def test_a_file_from_before_encodings_were_timed_is_read(tmp_path):
    path = tmp_path / "records.parquet"
    write_table(path, RECORDS, ABOUT)
    later = ["seconds_encoding", "seconds_opening"]
    pq.write_table(pq.read_table(path).drop_columns(later), path)
    before = [replace(each, seconds_encoding=(), seconds_opening=0.0) for each in RECORDS]
    assert read_table(path) == (before, ABOUT)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "records.parquet"
    write_table(path, RECORDS, ABOUT)

    def full_disk(table, where, compression):
        where.write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.pq, "write_table", full_disk)
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
        write_table(path, [], {})
    assert read_table(path).records == RECORDS
    assert list(tmp_path.iterdir()) == [path]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "records.parquet"
    with pytest.raises(DataError, match="no readable records"):
        read_table(path)
    write_table(path, RECORDS, ABOUT)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="no readable records"):
        read_table(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="its columns are a"):
        read_table(path)
