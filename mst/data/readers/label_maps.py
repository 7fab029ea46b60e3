"""Reader of photos with label maps, every region of which is an object."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, Records
from mst.data.files import is_folder
from mst.data.pixels.encode import annotate
from mst.data.pixels.mask_images import read_labels
from mst.data.problems import Problem
from mst.data.readers.folders import list_files
from mst.data.readers.pairs import NO_PHOTO, UNREADABLE, read_files
from mst.data.readers.segmentations import OTHER_SIZE
from mst.errors import DataError, ImageError

EMPTY_MAP = "label map without a region"
NO_LABELS = "image that is no label map"

_MAPS = frozenset({".png"})
_LAYOUTS = ("regions", "masks")  # the folders that hold maps; the first that exists is read
_VOID = "_void"

_log = logging.getLogger(__name__)


def read_label_maps(root: UPath, images: UPath | None = None) -> Records:
    """Read photos `ID.jpg` with their maps `ID.png` or `ID_K.png`; label 0 is no region.

    The maps lie in `root/regions` (BSDS) or `root/masks`, or in `root` itself where it has neither of these
    and `images` is given: so one folder of a large set can be read alone.

    Several maps of one photo, as several people drew them, become the objects of one record; regions that
    they agree on are left to `mst.data.join` to reduce to one. Folders inside are parts of the IDs.
    `ID_void.png` says which pixels nobody knows. Training has no such pixels, and takes them for background;
    the log says how many photos have them.

    Args:
        root: the folder.
        images: of the photos, where it is not `root/images`.

    Returns:
        A record for each photo that has a map; and what was left out: maps without a region, without their
        photo, of another size than it, or unreadable.

    Raises:
        DataError: the folder has another layout, or two photos or two maps have one name.
    """
    folder = images or root / "images"
    photos, listed = list_files(folder), list_files(_folder_of_maps(root, images), _MAPS)
    maps: dict[str, list[UPath]] = defaultdict(list)
    problems = [*photos.passed_over, *listed.passed_over]
    unknown = 0
    for name, path in listed.files.items():
        owner = name if name in photos.files else name.rpartition("_")[0]
        if owner not in photos.files:
            problems.append(Problem(NO_PHOTO, str(path), f"no photo for {owner or name}: {folder}/ID.jpg"))
        elif name == owner + _VOID:
            unknown += 1
        else:
            maps[owner].append(path)
    if not maps:
        first = f"; {problems[-1]}" if listed.files else ""
        raise DataError(
            f"{root}: expected label maps regions/ID_K.png or masks/ID.png of photos {folder}/ID.jpg{first}"
        )
    if unknown:
        _log.warning("%s: %d photos have pixels that nobody knows; they are background", root, unknown)
    records = [_record(photos.files[owner], paths, problems) for owner, paths in maps.items()]
    return Records([each for each in records if each is not None], tuple(problems))


def _folder_of_maps(root: UPath, images: UPath | None) -> UPath:
    for each in _LAYOUTS:
        if is_folder(root / each):
            return root / each
    return root if images else root / _LAYOUTS[0]


def _record(photo: UPath, paths: list[UPath], problems: list[Problem]) -> ImageRecord | None:
    """The photo and its regions; None where the photo itself would have to be read, and cannot be."""
    read = read_files(photo, paths, _labels, problems)
    if read is None:
        return None
    maps, shape = read
    objects: list[ObjectAnnotation] = []
    for path, labels in maps.items():
        if labels.shape != shape:
            what = f"{labels.shape[1]} x {labels.shape[0]} pixels, its photo has {shape[1]} x {shape[0]}"
            problems.append(Problem(OTHER_SIZE, str(path), what))
        elif not labels.any():
            problems.append(Problem(EMPTY_MAP, str(path), "all its labels are 0, which is no region", lost=0))
        else:
            objects += _regions(labels, path)
    return ImageRecord(photo, *shape, tuple(objects))


def _labels(path: UPath) -> NDArray[Any] | Problem:
    try:
        return read_labels(path)
    except ImageError as error:
        return Problem(UNREADABLE, str(path), str(error))
    except DataError as error:
        return Problem(NO_LABELS, str(path), str(error))


def _regions(labels: NDArray[Any], path: UPath) -> Iterator[ObjectAnnotation]:
    for label in np.unique(labels[labels > 0]):
        yield annotate(labels == label, f"{path.name}:{label}")
