"""Data sources by name: `format:path`, with options behind a `?` and between them `&`.

    ?images=FOLDER      where the images lie elsewhere
    ?crowds=objects     COCO and LVIS: what is marked iscrowd is taken for single objects

index:cocolvis                                  what `pipelines/prepare.py` made of all below
coco:annotations/instances_train2017.json       COCO, or any file in its format
lvis:lvis/lvis_v1_train.json?images=coco
panoptic:annotations/panoptic_train2017.json    stuff, added to the other sources' objects
labels:bsds                                     label maps
labels:more/masks/food?images=more/images/food
pairs:mine                                      images/NAME.jpg and masks/NAME.png
labelme:mine                                    NAME.json beside NAME.jpg, as X-AnyLabeling writes too
label_studio:export.json?images=photos          an export of Label Studio, format JSON
cvat:annotations.xml?images=photos              an export of CVAT, "CVAT for images 1.1"
accepted:out/serve/annotations                  what annotators accepted on a server of ours
hannotation:coco_lvis/train/hannotation.pickle  the field's own joined annotation
grabcut:/data/GrabCut                           an evaluation set (`mst.data.readers.evaluation_sets`)
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import call
from typing import NamedTuple

import numpy as np
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, Records, Sample
from mst.data.files import Fetch, as_path, exists, fetch, is_folder, names
from mst.data.index import MANIFEST, Index
from mst.data.join import join_records
from mst.data.problems import Problem, check_share, tell
from mst.data.readers.accepted import read_accepted
from mst.data.readers.coco import check_images, read_coco, read_lvis
from mst.data.readers.cvat import read_cvat
from mst.data.readers.evaluation_sets import EVALUATION_SETS
from mst.data.readers.hannotation import read_hannotation
from mst.data.readers.label_maps import read_label_maps
from mst.data.readers.label_studio import read_label_studio
from mst.data.readers.labelme import read_labelme
from mst.data.readers.pairs import read_pairs
from mst.data.readers.panoptic import read_panoptic
from mst.errors import ConfigError, DataError

INDEX = "index"
RECORD_READERS: dict[str, Callable[..., Records]] = {
    "lvis": read_lvis,
    "labels": read_label_maps,
    "pairs": read_pairs,
    "labelme": read_labelme,
    "label_studio": read_label_studio,
    "cvat": read_cvat,
    "accepted": read_accepted,
    "hannotation": read_hannotation,
    "coco": read_coco,
    "panoptic": read_panoptic,
}
"""Formats that one image's objects can be joined from; readers are given the path and the images' folder."""

_WITH_CROWDS = ("coco", "lvis")  # whose readers know crowds

MAX_FAULTY = 0.1
"""Share of objects left out as faulty above which a data set is refused, where nothing else is asked for."""

FORMATS = (INDEX, *RECORD_READERS, *EVALUATION_SETS)


class Source(NamedTuple):
    """Where a data set lies and how it is written."""

    format: str
    path: UPath
    images: UPath | None = None
    crowds: bool = False
    """Whether crowds are taken for single objects."""

    def read(self) -> Records:
        """Read the annotations.

        Raises:
            ConfigError: the source is for evaluation alone.
            DataError: it cannot be read.
        """
        if self.format not in RECORD_READERS:
            raise ConfigError(f"source format '{self.format}' is for evaluation, not for training")
        options = {"crowds": True} if self.crowds else {}
        return RECORD_READERS[self.format](self.path, self.images, **options)


@dataclass(frozen=True)
class SampleSet:
    """Objects to evaluate on, read one at a time."""

    loaders: Sequence[Callable[[], Sample]]

    def __len__(self) -> int:
        return len(self.loaders)

    def __iter__(self) -> Iterator[Sample]:
        return map(call, self.loaders)  # goes on after a loader's error, as a generator would not

    def spread(self, count: int) -> "SampleSet":
        """Return at most `count` of the objects, evenly spaced over the set."""
        if count >= len(self):
            return self
        return SampleSet([self.loaders[i] for i in np.linspace(0, len(self) - 1, count).round().astype(int)])

    def from_zero(self) -> "SampleSet":
        """Return the same objects without their initial masks."""
        return SampleSet([partial(_without_initial_mask, loader) for loader in self.loaders])

    def shard(self, rank: int, world_size: int) -> "SampleSet":
        """Return every `world_size`-th object, starting with `rank`."""
        return SampleSet(self.loaders[rank::world_size])


def _without_initial_mask(loader: Callable[[], Sample]) -> Sample:
    return replace(loader(), init_mask=None)


def parse_source(text: str, root: UPath) -> Source:
    """Read a source's name; relative paths start from `root`.

    Raises:
        ConfigError: the format is unknown or the text malformed.
    """
    name, separator, rest = text.partition(":")
    path, _, query = rest.partition("?")
    options = dict(each.partition("=")[::2] for each in query.split("&")) if query else {}
    has_crowds = options.get("crowds", "") in (("", "objects") if name in _WITH_CROWDS else ("",))
    if (
        not separator
        or not path
        or name not in FORMATS
        or options.keys() - {"images", "crowds"}
        or not has_crowds
    ):
        raise ConfigError(
            f"data source '{text}' is none of {', '.join(f'{each}:PATH' for each in FORMATS)}, "
            "each with '?images=FOLDER' where its images lie elsewhere; "
            f"{' and '.join(_WITH_CROWDS)} also with '?crowds=objects'"
        )
    images = _under(root, options["images"]) if options.get("images") else None
    return Source(name, _under(root, path), images, bool(options.get("crowds")))


def _under(root: UPath, path: str) -> UPath:
    return as_path(path) if "://" in path or path.startswith("/") else root / path


def check_sources(sources: Sequence[str], root: UPath) -> list[Source]:
    """Return the sources by these names, once all of them are there; nothing is read yet.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: the root or a source does not exist.
    """
    if not is_folder(root):
        raise DataError(f"data root {root} is no folder; set data.root to the folder of the data")
    parsed = [parse_source(text, root) for text in sources]
    for source in parsed:
        if not exists(source.path):
            raise DataError(f"{source.path}: no such file or folder")
    return parsed


def fingerprint(sources: Sequence[str], root: UPath) -> str:
    """Return a sha256 that changes with what is annotated, wherever the data lie; no image is read.

    It is of each source's name and, for a file, its bytes; for an index its manifest, which has the digest of
    its rows; for another folder the names in it and in its folders.

    Raises:
        ConfigError, DataError: as `check_sources`.
    """
    digest = hashlib.sha256()
    for text, source in zip(sources, check_sources(sources, root), strict=True):
        # Of the content its digest, which has a fixed length: no two lists of sources read the same.
        digest.update(text.encode() + b"\0" + hashlib.sha256(_identity(source.path)).digest())
    return digest.hexdigest()


def _identity(path: UPath) -> bytes:
    if not is_folder(path):
        return fetch(path)
    if exists(path / MANIFEST):
        return fetch(path / MANIFEST)
    listed = sorted(names(path))
    folders = [each for each in listed if "." not in each and is_folder(path / each)]
    return "\n".join(
        listed + [f"{each}/{name}" for each in folders for name in sorted(names(path / each))]
    ).encode()


def read_records(sources: Sequence[str], root: UPath, *, max_faulty: float = MAX_FAULTY) -> Records | Index:
    """Read the images and objects of training sources; those of the same image are joined.

    What is wrong is left out; the log and `left_out` of the result say how many objects, and why.

    Args:
        sources: their names.
        root: that relative paths start from.
        max_faulty: most of all objects, as a share, that may be left out as faulty.

    Raises:
        ConfigError: a source's name is wrong, or an index is not the only source.
        DataError: a source cannot be read, all of them hold no object, or too many objects are faulty.
    """
    parsed = check_sources(sources, root)
    formats = [source.format for source in parsed]
    if formats == [INDEX]:
        return Index(parsed[0].path, parsed[0].images or root)
    if INDEX in formats:
        raise ConfigError(f"an index is joined already and stands alone, unlike {', '.join(sources)}")
    parts = read_by_part(parsed)
    joined = join_records(**parts)
    problems = (*problems_of(parts), *joined.problems)
    what = ", ".join(sources) or "an empty list"
    tell(problems, what)
    check_share(problems, sum(len(record.objects) for record in joined), what, max_faulty)
    return Records(joined.images, problems)


def problems_of(parts: Mapping[str, Records]) -> list[Problem]:
    """Return what was wrong with the sources of all parts."""
    return [problem for records in parts.values() for problem in records.problems]


def read_by_part(sources: Sequence[Source], *, images_exist: bool = True) -> dict[str, Records]:
    """Read sources into the parts that `mst.data.join.join_records` takes.

    Args:
        sources: of annotations.
        images_exist: whether to refuse a source whose images are not all there.

    Raises:
        ConfigError: a source is for evaluation alone.
        DataError: a source cannot be read.
    """
    parts: dict[str, list[Records]] = {"finer": [], "coarser": [], "stuff": []}
    for source in sources:
        records = source.read()
        if images_exist:
            check_images([record.path for record in records], source.path)
        parts[{"coco": "coarser", "panoptic": "stuff"}.get(source.format, "finer")].append(records)
    return {
        part: Records(
            [record for records in read for record in records],
            tuple(problem for records in read for problem in records.problems),
        )
        for part, read in parts.items()
    }


def read_samples(
    sources: Sequence[str], root: UPath, fetch: Fetch = fetch, *, max_faulty: float = MAX_FAULTY
) -> SampleSet:
    """List the objects of evaluation sources, one sample an object.

    Objects of an annotation file under `mst.data.join.MIN_AREA` pixels are left out, as in training; what is
    faulty too, up to a share of `max_faulty`.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: a source cannot be read or holds no object, or too many are faulty.
    """
    loaders: list[Callable[[], Sample]] = []
    for text in sources:
        source = parse_source(text, root)
        if source.format in EVALUATION_SETS:
            loaders += EVALUATION_SETS[source.format](source.path, fetch)
        else:
            records = read_records([text], root, max_faulty=max_faulty)
            loaders += [
                partial(_read_object, record, each, str(record.path).removeprefix(f"{root}/"), fetch)
                for record in records
                for each in record.objects
                if not each.is_stuff
            ]
    if not loaders:
        raise DataError(f"no objects in {', '.join(sources) or 'an empty list of sources'}")
    return SampleSet(loaders)


def _read_object(record: ImageRecord, annotation: ObjectAnnotation, image_id: str, fetch: Fetch) -> Sample:
    return Sample(annotation.name, record.read(fetch), annotation.decode(), image_id=image_id)
