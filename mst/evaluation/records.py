"""Records of evaluated objects as Parquet: a row an object, and in the file's metadata what made them.

`pandas.read_parquet` and DuckDB read the files as they are: lists are list columns, and a click is a struct
of row, column and sign. Masks are COCO's compressed RLE: pycocotools decodes
`{"size": [height, width], "counts": mask}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mst.clicks import Click
from mst.data.files import written_whole
from mst.errors import DataError
from mst.evaluation import ObjectRecord

_NUMBERS = pa.list_(pa.float64())
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("image_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("area_share", pa.float64()),
        ("extent", _NUMBERS),
        ("size_class", pa.string()),
        ("init_iou", pa.float64()),
        (
            "clicks",
            pa.list_(pa.struct([("row", pa.float64()), ("col", pa.float64()), ("is_positive", pa.bool_())])),
        ),
        ("ious", _NUMBERS),
        ("boundary_ious", _NUMBERS),
        ("masks", pa.list_(pa.binary())),
        ("seconds_model", _NUMBERS),
        ("seconds_total", _NUMBERS),
        ("seconds_encoding", _NUMBERS),
        ("seconds_opening", pa.float64()),
    ]
)
"""Columns are the fields of `mst.evaluation.ObjectRecord`."""
_LATER = 2  # last columns, which files of earlier versions lack


class Recorded(NamedTuple):
    """What a file holds."""

    records: list[ObjectRecord]
    about: dict[str, str]
    """Provenance: model, data, settings."""


def write_table(path: Path, records: Sequence[ObjectRecord], about: Mapping[str, str]) -> None:
    """Write records to a file that appears whole or not at all.

    Args:
        path: of the file; its folder is made where it is missing.
        records: of the objects, in the order in which they are to be read.
        about: what made them, by name.

    Raises:
        DataError: the file cannot be written.
    """
    schema = SCHEMA.with_metadata(dict(about))
    table = pa.Table.from_pylist([asdict(each) for each in records], schema=schema)
    with written_whole(path) as file:
        pq.write_table(table, file, compression="zstd")


def read_table(path: Path) -> Recorded:
    """Read what `write_table` wrote.

    Raises:
        DataError: there is no such file, it is damaged, or holds something else.
    """
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: no readable records ({error})") from None
    if not any(table.schema.equals(pa.schema(list(SCHEMA)[:end])) for end in (len(SCHEMA), -_LATER)):
        found = ", ".join(table.schema.names)
        raise DataError(f"{path}: no records of objects as this version writes them; its columns are {found}")
    about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return Recorded([_record(row) for row in table.to_pylist()], about)


def _record(row: dict[str, Any]) -> ObjectRecord:
    lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
    clicks = tuple(Click(**each) for each in row["clicks"])
    return ObjectRecord(**{**row, **lists, "clicks": clicks})
