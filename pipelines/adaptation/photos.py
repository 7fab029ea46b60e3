"""A user's photos: what of them can be used, which ones teach, and which ones judge."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from upath import UPath

from mst.data.annotations import ImageRecord
from mst.data.compact import write_small
from mst.data.files import fetch, gist
from mst.data.index import read_manifest, to_batch, write_index
from mst.data.join import RULES, join_records
from mst.data.problems import Problem
from mst.data.sources import check_sources, problems_of, read_by_part
from mst.errors import ConfigError, DataError, ImageError

TRAIN, HELD_OUT = "train", "held_out"
"""Indexes of the photos that teach, and of those that judge."""

LEAST_TO_JUDGE = 3
"""Photos that an interval over photos needs to say something."""

_MOST_TO_JUDGE = 40
_MOST_OBJECTS = 300  # of a photo: more teach nothing that these do not
_SIDE = 1024  # pixels of the longer side, of the copies: the network sees at most half of it at once
_ABOUT = "about.json"


@dataclass(frozen=True)
class Photos:
    """What can be used, each photo once."""

    train: Sequence[ImageRecord]
    held_out: Sequence[ImageRecord]
    """Too few to judge by, none are held out."""
    problems: Sequence[Problem]
    """What was left out."""

    def digest(self) -> str:
        """Return a sha256 that changes with the photos and their masks, and with which of them judge."""
        digest = hashlib.sha256()
        for records in (self.train, self.held_out):
            for record in records:
                masks = [each.rle()["counts"] for each in record.objects]
                digest.update(repr((str(record.path), record.height, record.width, masks)).encode())
            digest.update(b"\0")
        return digest.hexdigest()

    def lines(self) -> list[str]:
        """Return what is used and what is left out, for a person to read."""
        counted = [
            f"{what} {len(records)} photos with {sum(len(each.objects) for each in records)} objects"
            for what, records in (("learns from", self.train), ("judges by", self.held_out))
        ]
        left_out = dict[str, list[Problem]]()
        for each in self.problems:
            left_out.setdefault(each.kind, []).append(each)
        return counted + [
            f"left out: {len(found)} x {kind}, the first is {found[0].detail or found[0].where}"
            for kind, found in left_out.items()
        ]


def read_photos(data: Sequence[str], held_out: Sequence[str], root: UPath) -> Photos:
    """Read the annotations of a user's photos, and divide these by photo.

    Every third photo is held out, by a digest of its file: the same ones in each run, whatever they are
    called. A photo that is there twice counts once.

    Args:
        data: sources, as `mst.data.sources` has them.
        held_out: sources to judge by; none for a part of `data`.
        root: that their relative paths start from.

    Raises:
        ConfigError: a source's name is wrong.
        DataError: a source cannot be read, or no photo can be used.
    """
    problems: list[Problem] = []
    mine, theirs = (_usable(sources, root, problems) if sources else {} for sources in (data, held_out))
    if not mine:
        raise DataError(f"no photo with objects that can be used in {', '.join(data)}{_first(problems)}")
    if held_out:
        both = mine.keys() & theirs.keys()
        problems += [Problem("photo that is held out", str(mine[each].path)) for each in sorted(both)]
        train = [record for digest, record in sorted(mine.items()) if digest not in both]
        return Photos(train, [theirs[each] for each in sorted(theirs)], problems)
    ordered = [mine[each] for each in sorted(mine)]
    judging = min(_MOST_TO_JUDGE, max(LEAST_TO_JUDGE, len(ordered) // 3))
    if len(ordered) < 2 * LEAST_TO_JUDGE:
        judging = 0
    return Photos(ordered[judging:], ordered[:judging], problems)


def keep_photos(photos: Photos, about: dict[str, str], folder: Path) -> None:
    """Copy the photos, no larger than they are needed, into a folder of their own: a data root with indexes.

    It is there whole or not at all; where it is there already, it is kept.

    Args:
        photos: to be copied.
        about: what they depend on.
        folder: for the copies.

    Raises:
        ConfigError: the folder is of other photos.
        DataError: the folder cannot be written.
    """
    if folder.exists():
        if json.loads((folder / _ABOUT).read_text()) != about:
            raise ConfigError(f"{folder} is of other photos or another model; give another --name")
        return
    staged = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    work = partial(write_small, root=UPath("/"), out=UPath(staged), side=_SIDE, quality=None)
    try:
        for name, records in ((TRAIN, photos.train), (HELD_OUT, photos.held_out)):
            if records:
                written = [each for each in map(work, records) if each.objects]
                write_index(staged / name, [to_batch(written, UPath(staged))], {"rules": RULES})
        (staged / _ABOUT).write_text(json.dumps(about))
        staged.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: could not be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def count_of(folder: Path, name: str) -> int:
    """Return how many photos one of the indexes of a folder has."""
    return int(read_manifest(UPath(folder / name))["counts"]["images"]) if (folder / name).exists() else 0


def _usable(sources: Sequence[str], root: UPath, problems: list[Problem]) -> dict[str, ImageRecord]:
    """Photos with objects that can be read, by the sha256 of their files."""
    parts = read_by_part(check_sources(sources, root), images_exist=False)
    joined = join_records(**{part: list(_few_objects(records, problems)) for part, records in parts.items()})
    problems += [*problems_of(parts), *joined.problems]
    found: dict[str, ImageRecord] = {}
    for record in joined:
        where = str(record.path)
        if not record.objects:
            problems.append(Problem("photo without objects", where, lost=0))
            continue
        try:
            data = fetch(record.path)
            record.read(partial(_given, data))
            digest = hashlib.sha256(data).hexdigest()
        except (ImageError, DataError, OSError) as error:
            problems.append(
                Problem("photo that cannot be read", where, gist(error), lost=len(record.objects))
            )
            continue
        if digest in found:
            problems.append(Problem("photo that is there already", where, lost=len(record.objects)))
            continue
        found[digest] = record
    return found


def _given(data: bytes, _: UPath) -> bytes:
    return data


def _few_objects(records: Iterable[ImageRecord], problems: list[Problem]) -> Iterator[ImageRecord]:
    for record in records:
        beyond = len(record.objects) - _MOST_OBJECTS
        if beyond > 0:
            kind = f"photo with more than {_MOST_OBJECTS} objects, of which these are used"
            problems.append(Problem(kind, str(record.path), lost=beyond))
            every = len(record.objects) / _MOST_OBJECTS
            chosen = tuple(record.objects[int(number * every)] for number in range(_MOST_OBJECTS))
            yield replace(record, objects=chosen)
        else:
            yield record


def _first(problems: Sequence[Problem]) -> str:
    return f"; the first of {len(problems)} problems: {problems[0]}" if problems else ""
