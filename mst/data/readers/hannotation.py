"""Reader of the field's joined annotation of COCO and LVIS, as it is distributed: pickles beside images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, Records, resolve_inside
from mst.data.files import fetch
from mst.data.join import EMPTY
from mst.data.pixels.encode import annotate
from mst.data.pixels.images import read_header
from mst.data.pixels.mask_images import decode_labels
from mst.data.problems import Problem
from mst.data.readers import plain_pickle
from mst.data.readers.coco import check_images
from mst.errors import DataError


@dataclass(frozen=True)
class _Entry:
    """What the table says of an image: objects from number `instances` on are stuff."""

    instances: int
    parents: Mapping[int, int | None]


def read_hannotation(path: UPath, images: UPath | None = None) -> Records:
    """Read `hannotation.pickle` and the `masks/ID.pickle` beside it, of the images `images/ID.jpg`.

    The table is a dict {ID: {"num_instance_masks": int, "hierarchy": {object: None or {"parent": object or
    None, ...}}}}. The file of an image's masks is a pair: the label layers, each the bytes of a PNG in an
    array, and for each object its layer and its label there. Both are read as data
    (`mst.data.readers.plain_pickle`). Objects without pixels are left out, and their parts become parts of
    what contained them.

    Args:
        path: of `hannotation.pickle`.
        images: folder of the images, where it is not `images` beside the table.

    Returns:
        A record for each image, in the table's order; and which objects were left out.

    Raises:
        DataError: a file is missing, malformed, or holds more than data.
    """
    table = _load(path)
    if not isinstance(table, dict):
        raise DataError(f"{path}: expected a dict with an entry an image, found {type(table).__name__}")
    entries = {str(key): _entry(value, f"{path}: image {key}") for key, value in table.items()}
    folder = images or path.parent / "images"
    pictures = [resolve_inside(folder, f"{key}.jpg", f"{path}: image {key}") for key in entries]
    check_images(pictures, path)
    masks = [path.parent / "masks" / f"{key}.pickle" for key in entries]
    problems: list[Problem] = []
    records = [
        _record(picture, file, entry, problems)
        for picture, file, entry in zip(pictures, masks, entries.values(), strict=True)
    ]
    return Records(records, tuple(problems))


def _load(path: UPath) -> Any:
    try:
        return plain_pickle.loads(fetch(path), str(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _entry(value: Any, name: str) -> _Entry:
    try:
        nodes = {int(number): node or {} for number, node in value["hierarchy"].items()}
        above = {number: node.get("parent") for number, node in nodes.items()}
        parents = {number: None if parent is None else int(parent) for number, parent in above.items()}
        return _Entry(int(value["num_instance_masks"]), parents)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise DataError(
            f"{name}: expected 'num_instance_masks' and 'hierarchy', which gives each object None or a dict "
            f"with its 'parent' ({error!r})"
        ) from None


def _record(picture: UPath, masks: UPath, entry: _Entry, problems: list[Problem]) -> ImageRecord:
    layers, places = _masks(masks)
    if entry.instances > len(places):
        raise DataError(f"{masks}: {len(places)} masks, where the table has {entry.instances} instances")
    found = _annotated(layers, places, masks)
    problems += [
        Problem(EMPTY, f"{masks.name}:{number}", "no pixel is the object's")
        for number in range(len(places))
        if number not in found
    ]
    index = {number: position for position, number in enumerate(found)}
    if layers:
        height, width = layers[0].shape
    else:
        height, width, _ = read_header(picture)
    objects = tuple(
        replace(each, parent=_parent(number, entry.parents, index, masks), is_stuff=number >= entry.instances)
        for number, each in found.items()
    )
    return ImageRecord(picture, height, width, objects)


def _masks(path: UPath) -> tuple[list[Any], list[tuple[int, int]]]:
    """Return the layers, each (H, W), and for each object its layer and its label."""
    content = _load(path)
    try:
        encoded, mapping = content
        files = [memoryview(each).tobytes() for each in encoded]
        places = [(int(layer), int(label)) for layer, label in mapping]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: expected a pair of the layers, as arrays of bytes, and of the objects' (layer, label) "
            f"({error})"
        ) from None
    # In Fortran's order, as the masks of COCO are encoded: turning each of the masks would take longer.
    layers = [np.asfortranarray(decode_labels(each, f"{path}: layer {i}")) for i, each in enumerate(files)]
    if len({layer.shape for layer in layers}) > 1:
        raise DataError(f"{path}: the layers have the sizes {sorted({layer.shape for layer in layers})}")
    return layers, places


def _annotated(
    layers: Sequence[Any], places: Sequence[tuple[int, int]], path: UPath
) -> dict[int, ObjectAnnotation]:
    found = {}
    for number, (layer, label) in enumerate(places):
        if not 0 <= layer < len(layers):
            raise DataError(f"{path}: object {number} lies in layer {layer}, of {len(layers)} layers")
        mask = layers[layer] == label
        if mask.any():
            found[number] = annotate(mask, f"{path.name}:{number}")
    return found


def _parent(number: int, parents: Mapping[int, int | None], index: Mapping[int, int], path: UPath) -> int:
    """Return the position of the nearest object with pixels that contains an object; -1 for none."""
    chain: list[int] = [number]
    while (above := parents.get(chain[-1])) is not None:
        if above in chain:
            raise DataError(f"{path}: object {above} contains itself")
        chain.append(above)
    return next((index[each] for each in chain[1:] if each in index), -1)
