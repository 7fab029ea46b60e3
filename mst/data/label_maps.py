"""Reader of photos with label maps, every region of which is an object (the layout of BSDS)."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation
from mst.data.encode import annotate
from mst.data.mask_images import read_labels
from mst.errors import DataError


def read_label_maps(root: UPath, images: UPath | None = None) -> list[ImageRecord]:
    """Read `root/images/ID.jpg` with its maps `root/regions/ID_K.png`; label 0 is no region.

    Several maps of one photo, as several people drew them, become the objects of one record; regions that
    they agree on are left to `mst.data.join` to reduce to one.

    Args:
        root: the folder.
        images: of the photos, where it is not `root/images`.

    Raises:
        DataError: the folder has another layout, a map lacks its photo, or maps of a photo differ in size.
    """
    folder, maps = images or root / "images", defaultdict(list)
    for path in sorted((root / "regions").glob("*_*.png")):
        maps[path.stem.rpartition("_")[0]].append(path)
    photos = {path.stem: path for path in sorted(folder.glob("*")) if path.stem in maps}
    if not maps or maps.keys() - photos.keys():
        lacking = f"; no photo for {min(maps.keys() - photos.keys())}" if maps else ""
        raise DataError(f"{root}: expected label maps regions/ID_K.png of photos {folder}/ID.jpg{lacking}")
    return [_record(photo, maps[name]) for name, photo in photos.items()]


def _record(photo: UPath, maps: list[UPath]) -> ImageRecord:
    objects = [each for path in maps for each in _regions(path)]
    sizes = {(each.height, each.width) for each in objects}
    if len(sizes) != 1:
        raise DataError(f"{maps[0]}: the label maps of this photo have the sizes {sorted(sizes)}")
    return ImageRecord(photo, *sizes.pop(), tuple(objects))


def _regions(path: UPath) -> Iterator[ObjectAnnotation]:
    labels = read_labels(path)
    for label in np.unique(labels[labels > 0]):
        yield annotate(labels == label, f"{path.name}:{label}")
