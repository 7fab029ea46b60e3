"""What lies in a folder of images or masks: one rule for suffixes, case, subfolders and doubles."""

import logging
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from upath import UPath

from mst.data.files import is_remote
from mst.data.index import relative_to
from mst.data.problems import Problem
from mst.errors import DataError

_log = logging.getLogger(__name__)

PASSED_OVER = "files passed over"
IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Listing:
    """The files of a folder by their names without suffix, as in `session1/photo`."""

    folder: UPath
    files: dict[str, UPath]
    """In the order of names."""
    passed_over: tuple[Problem, ...] = ()
    """At most one: how many other files there are, by suffix."""


def list_files(folder: UPath, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Listing:
    """List the files of some suffixes in a folder and all folders in it.

    Suffixes may be written in capitals. Hidden files and folders, such as macOS's `._photo.jpg`, and files of
    other suffixes are passed over, which the log says with their number. A folder that does not exist holds
    nothing.

    Args:
        folder: to look in.
        suffixes: in small letters, each with its dot.

    Raises:
        DataError: two files differ in their suffix or its case alone, so that nobody knows which is meant.
    """
    files: dict[str, UPath] = {}
    passed_over: Counter[str] = Counter()
    for path in sorted(_walk(folder), key=str):
        name = relative_to(path, folder)
        if any(part.startswith(".") for part in name.split("/")):
            passed_over["hidden"] += 1
        elif path.suffix.lower() not in suffixes:
            passed_over[path.suffix.lower() or "no suffix"] += 1
        else:
            key = name.removesuffix(path.suffix)
            if key in files:
                raise DataError(
                    f"{path}: nobody can tell it from {files[key].name}; rename one, or take it away"
                )
            files[key] = path
    if not passed_over:
        return Listing(folder, files)
    what = ", ".join(f"{count} {kind}" for kind, count in passed_over.most_common())
    problem = Problem(PASSED_OVER, str(folder), f"{passed_over.total()} files: {what}", 0, is_fault=False)
    _log.warning("passed over in %s", problem)
    return Listing(folder, files, (problem,))


def _walk(folder: UPath) -> Iterator[UPath]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif not _leads_back(path):
            yield from _walk(path)


def _leads_back(folder: UPath) -> bool:
    """Whether a folder is a link to one that it lies in."""
    if is_remote(folder) or not folder.is_symlink():
        return False
    return bool(folder.parent.resolve().is_relative_to(folder.resolve()))
