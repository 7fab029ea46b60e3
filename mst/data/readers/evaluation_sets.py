"""Readers of the field's evaluation sets, in the folder layouts in which they are published.

Each lists loaders, one an object, which read its files when called. Files that are no images (`Thumbs.db`)
are passed over, and counted in the log. A folder of another layout, a file without its partner, two files of
one name, or an unreadable file is a DataError. Where a set has folders `img` and `gt`, they may be called
`images` and `masks`, and the other way about.
"""

import io
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from upath import UPath

from mst.data.annotations import Sample
from mst.data.files import Fetch
from mst.data.join import MIN_AREA
from mst.data.pixels.images import read_image
from mst.data.pixels.mask_images import read_labels
from mst.data.readers.folders import IMAGE_SUFFIXES, list_files
from mst.errors import DataError

Loader = Callable[[], Sample]
"""Reads one object; can be pickled."""

Labels = NDArray[Any]
"""Label of each pixel, (H, W); a mask's are False and True."""

ReadLabels = Callable[[UPath, Fetch], Labels]

_SUFFIXES = IMAGE_SUFFIXES | {".mat"}
_IMAGES, _MASKS, _INITS = ("images", "img"), ("masks", "gt"), ("init_masks", "init")
_SIZES = (("small", 32**2), ("medium", 96**2), ("large", 256**2))


def list_grabcut(root: UPath, fetch: Fetch) -> list[Loader]:
    """List GrabCut (50 objects; Rother et al. 2004): `data_GT/ID.*` and trimaps `boundary_GT/ID.bmp`.

    The trimap's 255 is object, 128 void, all else background.
    """
    folder, trimaps = _folders(root, "GrabCut", ("data_GT",), ("boundary_GT",))
    images, maps = _by_stem(folder), _by_stem(trimaps)
    _check_there("trimaps", trimaps, images, maps, ".bmp")
    return [
        partial(_read_object, f"grabcut/{stem}", image, maps[stem], read_labels, fetch, 255, 128)
        for stem, image in images.items()
    ]


def list_berkeley(root: UPath, fetch: Fetch) -> list[Loader]:
    """List Berkeley (100 objects in 96 images; McGuinness and O'Connor 2010).

    `images/ID.jpg` with the RGB masks `masks/ID.png`, or `masks/ID#K.png` for several objects of an image.
    """
    return _list_pairs(root, "Berkeley", _read_bright, fetch)


def list_davis(root: UPath, fetch: Fetch) -> list[Loader]:
    """List the 345 frames drawn from DAVIS (Perazzi et al. 2016), one object a frame.

    `img/NAME.jpg` with the palette images `gt/NAME.png`, of which any label but 0 is the object.
    """
    return _list_pairs(root, "DAVIS", _read_labelled, fetch)


def list_coco_mval(root: UPath, fetch: Fetch) -> list[Loader]:
    """List COCO_MVal (800 objects): `img/NAME.*` with black and white masks `gt/NAME.*`."""
    return _list_pairs(root, "COCO_MVal", _read_bright, fetch)


def list_davis585(root: UPath, fetch: Fetch) -> list[Loader]:
    """List DAVIS-585 (Chen et al. 2022), whose samples carry an initial mask to be corrected.

    How the set is published is not known here for certain: accepted are `img/NAME.*`, `gt/NAME.*` and
    `init/NAME.*` (or `init_masks/NAME.*`), in which any label but 0 is the object.
    """
    photos, drawn, initial = _folders(root, "DAVIS585", _IMAGES, _MASKS, _INITS)
    pairs, inits = _pairs(photos, drawn), _by_stem(initial)
    _check_there("initial masks", initial, [stem for stem, _, _ in pairs], inits)
    return [
        partial(_read_corrected, f"davis585/{stem}", image, mask, inits[stem], fetch)
        for stem, image, mask in pairs
    ]


def list_pascal_voc(root: UPath, fetch: Fetch) -> list[Loader]:
    """List the objects of PASCAL VOC's segmentation split val (Everingham et al. 2010).

    `JPEGImages/ID.jpg` with the palette images `SegmentationObject/ID.png`, for each ID in
    `ImageSets/Segmentation/val.txt`. Label 255 is void, 0 background, any other an object.
    """
    folders = _folders(root, "PASCAL_VOC", ("JPEGImages",), ("SegmentationObject",))
    split = root / "ImageSets" / "Segmentation" / "val.txt"
    return _list_labelled("pascal_voc", folders, split, read_labels, fetch, void=255)


def list_sbd(root: UPath, fetch: Fetch) -> list[Loader]:
    """List the objects of the split val of the Semantic Boundaries Dataset (Hariharan et al. 2011).

    `img/ID.jpg` with `inst/ID.mat`, for each ID in `val.txt`. The MATLAB struct `GTinst` holds the label map
    `Segmentation`, in which 0 is background and any other label an object.
    """
    folders = _folders(root, "SBD", ("img",), ("inst",))
    return _list_labelled("sbd", folders, root / "val.txt", _read_mat, fetch)


def list_loveda(root: UPath, fetch: Fetch) -> list[Loader]:
    """List the objects of LoveDA (Wang et al. 2021), each with its size class.

    `images_png/ID.png` with the label maps `masks_png/ID.png`, in `root` or in folders under it such as
    `Val/Rural`. Label 0 is void, 1 background, 2..7 are classes. An object is an 8-connected component of
    one class, of at least `MIN_AREA` pixels; its name ends with its class and the component's number.
    """
    places = list(_loveda_places(root, "loveda")) if root.is_dir() else []
    if not places:
        raise _wrong_layout(root, "LoveDA", "images_png and masks_png, or folders that have them")
    return [
        partial(_read_component, f"{name}/{stem}:{label}:{number}", image, path, label, number, fetch)
        for name, folder in places
        for stem, image, path in _pairs(*_folders(folder, "LoveDA", ("images_png",), ("masks_png",)))
        for label, number in _loveda_objects(read_labels(path, fetch))
    ]


EVALUATION_SETS: dict[str, Callable[[UPath, Fetch], list[Loader]]] = {
    "grabcut": list_grabcut,
    "berkeley": list_berkeley,
    "davis": list_davis,
    "coco_mval": list_coco_mval,
    "davis585": list_davis585,
    "pascal_voc": list_pascal_voc,
    "sbd": list_sbd,
    "loveda": list_loveda,
}


def size_class(area: int) -> str:
    """Return the size class of an object of `area` pixels: small, medium, large or huge.

    Small is below 32 x 32 pixels and medium below 96 x 96, as in COCO; large is below 256 x 256. The bounds
    are ours: the MST paper reports by size and names none.
    """
    return next((name for name, bound in _SIZES if area < bound), "huge")


def _folders(root: UPath, title: str, *parts: tuple[str, ...]) -> list[UPath]:
    """Return a set's folders; each of `parts` gives the names that one of them may have."""
    there = [[root / name for name in names if (root / name).is_dir()] for names in parts]
    if not all(there):
        raise _wrong_layout(root, title, " and ".join(" or ".join(names) for names in parts))
    return [folders[0] for folders in there]


def _wrong_layout(root: UPath, title: str, expected: str) -> DataError:
    found = sorted(each.name for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    return DataError(
        f"{root}: not the {title} set, which has the folders {expected}; found {', '.join(found) or 'none'}"
    )


def _by_stem(folder: UPath) -> dict[str, UPath]:
    """List a folder's images and maps by name."""
    return list_files(folder, _SUFFIXES).files


def _check_there(
    what: str, folder: UPath, wanted: Collection[str], there: Collection[str], end: str = ".*"
) -> None:
    missing = [stem for stem in wanted if stem not in there]
    if missing:
        raise DataError(
            f"{folder.parent}: {len(missing)} of {len(wanted)} {what} are missing, "
            f"the first is {folder / missing[0]}{end}"
        )


def _pairs(photos: UPath, drawn: UPath) -> list[tuple[str, UPath, UPath]]:
    """Return name, image and mask of each mask NAME.* or NAME#K.*; each image must have one."""
    images, masks = _by_stem(photos), _by_stem(drawn)
    owners = {stem: stem if stem in images else stem.partition("#")[0] for stem in masks}
    _check_there("images", photos, dict.fromkeys(owners.values()), images)
    _check_there("masks", drawn, images, set(owners.values()))
    return [(stem, images[owner], masks[stem]) for stem, owner in owners.items()]


def _list_pairs(root: UPath, title: str, read: ReadLabels, fetch: Fetch) -> list[Loader]:
    return [
        partial(_read_object, f"{title.lower()}/{stem}", image, mask, read, fetch, True)
        for stem, image, mask in _pairs(*_folders(root, title, _IMAGES, _MASKS))
    ]


def _list_labelled(
    name: str, folders: list[UPath], split: UPath, read: ReadLabels, fetch: Fetch, void: int | None = None
) -> list[Loader]:
    ids = _read(split, fetch).decode(errors="replace").split()
    images, maps = map(_by_stem, folders)
    _check_there("images", folders[0], ids, images)
    _check_there("label maps", folders[1], ids, maps)
    return [
        partial(_read_object, f"{name}/{each}:{label}", images[each], maps[each], read, fetch, label, void)
        for each in ids
        for label in np.unique(read(maps[each], fetch)).tolist()
        if label not in (0, void)
    ]


def _loveda_places(folder: UPath, name: str) -> Iterator[tuple[str, UPath]]:
    """Find the folders that have label maps; the published split Test has none."""
    if (folder / "masks_png").is_dir():
        yield name, folder
        return
    for each in sorted(folder.iterdir(), key=str):
        if each.is_dir():
            yield from _loveda_places(each, f"{name}/{each.name}")


def _loveda_objects(labels: Labels) -> Iterator[tuple[int, int]]:
    for label in range(2, 8):
        areas = np.bincount(_components(labels, label).ravel())[1:]
        yield from ((label, number) for number, area in enumerate(areas, 1) if area >= MIN_AREA)


def _components(labels: Labels, label: int) -> Labels:
    """Number the 8-connected components of a label from 1; 0 elsewhere."""
    return np.asarray(cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=8)[1])


def _read_object(
    name: str, image: UPath, path: UPath, read: ReadLabels, fetch: Fetch, label: int, void: int | None = None
) -> Sample:
    labels = read(path, fetch)
    ignored = None if void is None else labels == void
    return Sample(name, read_image(image, fetch), labels == label, ignored, image_id=_image_id(name, image))


def _read_corrected(name: str, image: UPath, path: UPath, init: UPath, fetch: Fetch) -> Sample:
    mask, start = _read_labelled(path, fetch), _read_labelled(init, fetch)
    return Sample(name, read_image(image, fetch), mask, init_mask=start)


def _read_component(name: str, image: UPath, path: UPath, label: int, number: int, fetch: Fetch) -> Sample:
    labels = read_labels(path, fetch)
    mask = _components(labels, label) == number
    return Sample(
        name,
        read_image(image, fetch),
        mask,
        labels == 0,
        size_class=size_class(int(mask.sum())),
        image_id=_image_id(name, image),
    )


def _image_id(name: str, image: UPath) -> str:
    """The image of an object that is called `SET/…`."""
    return f"{name.rpartition('/')[0]}/{image.name}"


def _read_bright(path: UPath, fetch: Fetch) -> Labels:
    return np.asarray(read_image(path, fetch).max(axis=2) >= 128)


def _read_labelled(path: UPath, fetch: Fetch) -> Labels:
    return np.asarray(read_labels(path, fetch) != 0)


def _read_mat(path: UPath, fetch: Fetch) -> Labels:
    content = _read(path, fetch)
    try:
        return np.asarray(loadmat(io.BytesIO(content))["GTinst"]["Segmentation"][0, 0])
    except Exception as error:  # scipy raises whatever the bytes lead it to
        raise DataError(f"{path}: no MATLAB file with GTinst.Segmentation ({error!r})") from None


def _read(path: UPath, fetch: Fetch) -> bytes:
    try:
        return fetch(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
