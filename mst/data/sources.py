"""Data sources by name: `format:path`, with `?images=folder` where the images lie elsewhere.

coco:annotations/instances_train2017.json
lvis:lvis/lvis_v1_train.json?images=coco
labels:bsds
grabcut:/data/GrabCut
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mst.data.annotations import ImageRecord, ObjectAnnotation, Sample
from mst.data.coco import read_coco, read_lvis
from mst.data.grabcut import list_grabcut, read_grabcut_sample
from mst.data.join import MIN_AREA, join_records
from mst.data.label_maps import read_label_maps
from mst.errors import ConfigError, DataError

RECORD_READERS: dict[str, Callable[[Path, Path | None], list[ImageRecord]]] = {
    "lvis": read_lvis,
    "coco": read_coco,
    "labels": read_label_maps,
}
FORMATS = (*RECORD_READERS, "grabcut")


class Source(NamedTuple):
    """Where a data set lies and how it is written."""

    format: str
    path: Path
    images: Path | None = None


@dataclass(frozen=True)
class SampleSet:
    """Objects to evaluate on, read one at a time."""

    loaders: Sequence[Callable[[], Sample]]

    def __len__(self) -> int:
        return len(self.loaders)

    def __iter__(self) -> Iterator[Sample]:
        return (load() for load in self.loaders)

    def spread(self, count: int) -> "SampleSet":
        """Return at most `count` of the objects, evenly spaced over the set."""
        if count >= len(self):
            return self
        return SampleSet([self.loaders[i] for i in np.linspace(0, len(self) - 1, count).round().astype(int)])

    def shard(self, rank: int, world_size: int) -> "SampleSet":
        """Return every `world_size`-th object, starting with `rank`."""
        return SampleSet(self.loaders[rank::world_size])


def parse_source(text: str, root: Path) -> Source:
    """Read a source's name; relative paths start from `root`.

    Raises:
        ConfigError: the format is unknown or the text malformed.
    """
    name, separator, rest = text.partition(":")
    path, _, option = rest.partition("?")
    if not separator or not path or name not in FORMATS or not (option == "" or option.startswith("images=")):
        raise ConfigError(
            f"data source '{text}' is none of {', '.join(f'{each}:PATH' for each in FORMATS)}, "
            "each with '?images=FOLDER' where its images lie elsewhere"
        )
    return Source(name, root / path, root / option.removeprefix("images=") if option else None)


def check_sources(sources: Sequence[str], root: Path) -> list[Source]:
    """Return the sources by these names, once all of them are there; nothing is read yet.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: the root or a source does not exist.
    """
    if not root.is_dir():
        raise DataError(f"data root {root} is no folder; set data.root to the folder of the data")
    parsed = [parse_source(text, root) for text in sources]
    for source in parsed:
        if not source.path.exists():
            raise DataError(f"{source.path}: no such {'folder' if source.format == 'grabcut' else 'file'}")
    return parsed


def read_records(sources: Sequence[str], root: Path) -> list[ImageRecord]:
    """Read the images and objects of training sources; those of the same image are joined.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: a source cannot be read, or all of them hold no object.
    """
    parsed = check_sources(sources, root)
    wrong = [source.format for source in parsed if source.format not in RECORD_READERS]
    if wrong:
        raise ConfigError(f"source format '{wrong[0]}' is for evaluation, not for training")
    read: dict[str, list[ImageRecord]] = {name: [] for name in RECORD_READERS}
    for source in parsed:
        read[source.format] += RECORD_READERS[source.format](source.path, source.images)
    records = join_records(finer=read["lvis"] + read["labels"], coarser=read["coco"])
    if not any(record.objects for record in records):
        raise DataError(f"no objects of at least {MIN_AREA} px in {', '.join(sources) or 'an empty list'}")
    return records


def read_samples(sources: Sequence[str], root: Path) -> SampleSet:
    """List the objects of evaluation sources, one sample an object.

    Objects of an annotation file under `MIN_AREA` pixels are left out, as in training.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: a source cannot be read or holds no object.
    """
    loaders: list[Callable[[], Sample]] = []
    for text in sources:
        source = parse_source(text, root)
        if source.format == "grabcut":
            loaders += [partial(read_grabcut_sample, *pair) for pair in list_grabcut(source.path)]
        else:
            records = read_records([text], root)
            loaders += [partial(_read_object, record, each) for record in records for each in record.objects]
    if not loaders:
        raise DataError(f"no objects in {', '.join(sources) or 'an empty list of sources'}")
    return SampleSet(loaders)


def _read_object(record: ImageRecord, annotation: ObjectAnnotation) -> Sample:
    return Sample(annotation.name, record.read(), annotation.decode())
