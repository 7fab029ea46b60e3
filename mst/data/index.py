"""The index of a data set: one row an image, memory-mapped, so that it opens at once and workers share it.

    FOLDER/images.arrow     Arrow IPC file: path, size, and the objects with their masks as COCO's runs
    FOLDER/manifest.json    counts, sources, rules and the digest of images.arrow; written last

`pipelines/prepare.py` makes it; in a config it is the source `index:FOLDER`. Images stay where they are:
paths are relative to the data root.
"""

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
from upath import UPath

from mst.data.annotations import Extent, ImageRecord, ObjectAnnotation, resolve_inside
from mst.data.files import fetch, is_remote
from mst.errors import DataError

IMAGES = "images.arrow"
MANIFEST = "manifest.json"
FORMAT = 1
ROWS = 1024
"""Images in each batch of the file but the last."""

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        (
            "objects",
            pa.list_(
                pa.struct(
                    [
                        ("counts", pa.binary()),
                        ("area", pa.float64()),
                        ("box", pa.list_(pa.float32(), 4)),
                        ("name", pa.string()),
                        ("parent", pa.int32()),
                        ("is_stuff", pa.bool_()),
                    ]
                )
            ),
        ),
    ]
)


class Index(Sequence[ImageRecord]):
    """The records of an index, read from the mapped file when they are asked for.

    Args:
        folder: of the index; one in a store is copied to this machine's temporary folder first, once.
        images: the folder that the images' paths start from.

    Raises:
        DataError: there is no index, an unfinished one, or its file has another size than was written.
    """

    def __init__(self, folder: UPath, images: UPath) -> None:
        self.folder, self._images = folder, images
        self.manifest = read_manifest(folder)
        rows = folder / IMAGES
        try:
            local = _local_copy(rows, self.manifest["sha256"])
            self._reader = pa.ipc.open_file(pa.memory_map(str(local)))
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{rows}: not readable ({error}); prepare the index anew") from None
        if local.stat().st_size != self.manifest["bytes"]:
            raise DataError(
                f"{local}: {local.stat().st_size} bytes, its manifest says {self.manifest['bytes']}; "
                "prepare the index anew"
            )

    def __len__(self) -> int:
        return int(self.manifest["counts"]["images"])

    @property
    def left_out(self) -> Counter[str]:
        """How many objects were left out when the index was made, by why."""
        counted = self.manifest.get("left_out")
        return Counter(
            counted if isinstance(counted, dict) else {}
        )  # earlier indexes have none, or their sum

    def with_objects(self) -> list[int]:
        """Return the places of the images that have objects; no object is read."""
        batches = (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
        counts = [count for batch in batches for count in batch.column("objects").value_lengths().to_pylist()]
        return [place for place, count in enumerate(counts) if count]

    @overload
    def __getitem__(self, number: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, number: slice) -> list[ImageRecord]: ...
    def __getitem__(self, number: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.folder} has {len(self)} images, there is no number {number}")
        batch, row = divmod(number % len(self), ROWS)
        return self._record(self._reader.get_batch(batch).slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[ImageRecord]:
        for batch in range(self._reader.num_record_batches):
            for row in self._reader.get_batch(batch).to_pylist():
                yield self._record(row)

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.folder, self._images)  # another process maps the file itself

    def _record(self, row: dict[str, Any]) -> ImageRecord:
        height, width = row["height"], row["width"]
        return ImageRecord(
            resolve_inside(self._images, row["path"], str(self.folder)),
            height,
            width,
            tuple(
                ObjectAnnotation(
                    segmentation={"size": [height, width], "counts": each["counts"]},
                    height=height,
                    width=width,
                    name=each["name"],
                    parent=each["parent"],
                    is_stuff=each["is_stuff"],
                    measured=Extent(each["area"], tuple(each["box"])),
                )
                for each in row["objects"]
            ),
        )


def read_manifest(folder: UPath) -> dict[str, Any]:
    """Read what an index says of itself.

    Raises:
        DataError: the folder holds no index, an unfinished one, or one of another version of this format.
    """
    try:
        manifest: dict[str, Any] = json.loads(fetch(folder / MANIFEST))
    except OSError:
        raise DataError(f"{folder}: no index, which has {MANIFEST}; pipelines/prepare.py makes one") from None
    except ValueError as error:
        raise DataError(f"{folder / MANIFEST}: not a JSON file ({error})") from None
    if manifest.get("format") != FORMAT:
        raise DataError(f"{folder}: an index of format {manifest.get('format')}, this version reads {FORMAT}")
    return manifest


def to_batch(records: Iterable[ImageRecord], images: UPath) -> pa.RecordBatch:
    """Pack records, whose images lie in the folder `images`.

    Raises:
        DataError: an image lies elsewhere, or a segmentation is malformed.
    """
    rows = [
        {
            "path": relative_to(record.path, images),
            "height": record.height,
            "width": record.width,
            "objects": [
                {
                    "counts": each.rle()["counts"],
                    "area": each.area,
                    "box": each.box,
                    "name": each.name,
                    "parent": each.parent,
                    "is_stuff": each.is_stuff,
                }
                for each in record.objects
            ],
        }
        for record in records
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def relative_to(path: UPath, images: UPath) -> str:
    """Return an image's path from the data root on.

    Raises:
        DataError: it does not lie there.
    """
    base = f"{str(images).rstrip('/')}/" if str(images) != "." else ""
    if not str(path).startswith(base):
        raise DataError(f"{path} lies outside the data root {images}; give a root that holds all images")
    return str(path).removeprefix(base)


def write_index(folder: Path, rows: Iterable[pa.RecordBatch], about: dict[str, Any]) -> dict[str, Any]:
    """Write an index; it appears in its folder whole, or not at all.

    Args:
        folder: must not exist.
        rows: the images, in batches of any size.
        about: what else the manifest shall say: sources, rules, and how many objects were left out, by why.

    Returns:
        The manifest.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    if folder.exists():
        raise DataError(f"{folder} exists already; remove it, or give another folder")
    partial = folder.with_name(f"{folder.name}.writing")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        counts = _write_rows(partial / IMAGES, rows)
        manifest = {
            "format": FORMAT,
            "sha256": digest(partial / IMAGES),
            "bytes": (partial / IMAGES).stat().st_size,
            "counts": dict(counts),
            **about,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{folder}: the index could not be written ({error.strerror or error})") from None
    return manifest


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_rows(path: Path, rows: Iterable[pa.RecordBatch]) -> Counter[str]:
    counts: Counter[str] = Counter(images=0, objects=0, stuff=0, without_objects=0)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for batch in _batches(rows):
            writer.write_batch(batch)
            sizes = batch.column("objects").value_lengths()
            counts["images"] += batch.num_rows
            counts["objects"] += sum(sizes.to_pylist())
            counts["without_objects"] += sizes.to_pylist().count(0)
            counts["stuff"] += batch.column("objects").values.field("is_stuff").true_count
    return counts


def _batches(rows: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Cut batches of any size into batches of `ROWS`."""
    waiting: list[pa.RecordBatch] = []
    for each in rows:
        waiting.append(each)
        while sum(batch.num_rows for batch in waiting) >= ROWS:
            table = pa.Table.from_batches(waiting).combine_chunks()
            yield table.slice(0, ROWS).combine_chunks().to_batches()[0]
            waiting = table.slice(ROWS).combine_chunks().to_batches()
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def _local_copy(path: UPath, sha256: str) -> Path:
    if not is_remote(path):
        return Path(str(path))
    copy = Path(tempfile.gettempdir()) / f"mst-index-{sha256}.arrow"
    if not copy.exists():
        content = fetch(path)
        with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as file:
            file.write(content)
        Path(file.name).replace(copy)
    return copy
