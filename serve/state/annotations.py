"""Masks that annotators accepted, kept with their images until they are deleted: for `pipelines/adapt.py`.

`mst.data.readers.accepted` has the layout. An annotation is named by what it says, so that sending it twice
keeps it once.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import cv2
import numpy as np

from mst.clicks import Mask
from mst.data.files import as_path, exists, is_remote, names, remove, upload, written_whole
from mst.data.pixels.encode import encode_rle
from mst.data.readers.accepted import ANNOTATIONS, IMAGES, documents, documents_of
from mst.errors import DataError, MaskError
from serve.errors import OverloadedError

_ID = re.compile(r"[0-9a-f]{1,64}")
_NAMED_BY = ("image_id", "label", "mask")


class Annotations:
    """The accepted masks of all replicas.

    Args:
        url: of a folder, or `s3://bucket/prefix`.
    """

    def __init__(self, url: str) -> None:
        self._root = as_path(url)

    def put(self, image: bytes, suffix: str, document: Mapping[str, Any]) -> str:
        """Keep a mask and its image, and return the annotation's id.

        Args:
            image: the file.
            suffix: that tells its format.
            document: what was accepted.
        """
        said = json.dumps([document[each] for each in _NAMED_BY], sort_keys=True)
        annotation_id = hashlib.sha256(said.encode()).hexdigest()[:32]
        image_id = document["image_id"]
        with _reached():
            photo = f"{IMAGES}/{image_id}{suffix}"
            if not exists(self._root / photo):
                self._write(photo, image)
            name = f"{ANNOTATIONS}/{image_id}/{annotation_id}.json"
            self._write(name, json.dumps({"id": annotation_id, **document}).encode())
        return annotation_id

    def of_image(self, image_id: str) -> list[dict[str, Any]]:
        """Return what is kept of an image."""
        if not _ID.fullmatch(image_id):
            return []
        with _reached():
            return list(documents_of(self._root, image_id))

    def all(self) -> list[dict[str, Any]]:
        """Return all that is kept."""
        with _reached():
            return list(documents(self._root))

    def delete(self, image_id: str, annotation_id: str) -> bool:
        """Delete an annotation, and with the last one of an image the image; whether it was there."""
        if not (_ID.fullmatch(image_id) and _ID.fullmatch(annotation_id)):
            return False
        folder = self._root / ANNOTATIONS / image_id
        file = folder / f"{annotation_id}.json"
        with _reached():
            if not exists(file):
                return False
            remove(file)
            if not any(each.endswith(".json") for each in names(folder)):
                remove(folder)
                for each in names(self._root / IMAGES):
                    if each.partition(".")[0] == image_id:
                        remove(self._root / IMAGES / each)
        return True

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all, and there after a loss of power."""
        path = self._root / name
        if is_remote(path):
            with NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                upload(Path(file.name), path)
            return
        with written_whole(Path(str(path))) as part, part.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except (OSError, DataError) as error:
        raise OverloadedError(f"the annotation store does not answer ({type(error).__name__})") from error


def measured(mask: Mask) -> dict[str, Any]:
    """Return a mask (H, W) as COCO has it, with its area and box, and the time.

    Raises:
        MaskError: it is empty.
    """
    if not mask.any():
        raise MaskError("an empty mask cannot be accepted")
    return {
        "mask": {"size": [*mask.shape], "counts": encode_rle(mask).decode()},
        "area": int(np.count_nonzero(mask)),
        "bbox": [*cv2.boundingRect(mask.view(np.uint8))],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def coco(kept: list[dict[str, Any]]) -> dict[str, Any]:
    """Return annotations in COCO's format, with the images' ids as their files' names."""
    images = {each["image_id"]: each["mask"]["size"] for each in kept}
    labels = sorted({each["label"] for each in kept})
    numbers = {name: number for number, name in enumerate(images, 1)}
    return {
        "images": [
            {"id": numbers[name], "file_name": name, "height": size[0], "width": size[1]}
            for name, size in images.items()
        ],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[each["image_id"]],
                "category_id": labels.index(each["label"]) + 1,
                "segmentation": each["mask"],
                "iscrowd": 0,
                **{name: each[name] for name in ("area", "bbox", "score", "author", "at") if name in each},
            }
            for number, each in enumerate(kept, 1)
        ],
    }
