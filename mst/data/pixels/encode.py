"""Masks of pixels to run lengths, and to annotations."""

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mst.clicks import Mask
from mst.data.annotations import Extent, ObjectAnnotation
from mst.data.pixels.runs import Runs, paint


def encode_rle(mask: Mask) -> bytes:
    """Return the run lengths of a mask (H, W): COCO's compressed RLE, without its size."""
    by_columns = cv2.transpose(mask.astype(np.uint8)).T  # faster than np.asfortranarray
    return bytes(coco_mask.encode(by_columns)["counts"])


def decode_rle(counts: bytes | str, height: int, width: int) -> Mask:
    """Return the mask (height, width) that `encode_rle` made run lengths of.

    Raises:
        ValueError: they are none, or do not add up to the mask; COCO's decoder would write beyond its memory.
    """
    return paint([Runs.parse(counts, height, width)], height, 0, width)


def annotate(mask: Mask, name: str) -> ObjectAnnotation:
    """Return the annotation of an object by its mask, (H, W), which is not empty.

    Args:
        mask: of the object.
        name: where the mask stands, for errors and records.
    """
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    left, top, width, height = coco_mask.toBbox(encoded).tolist()
    return ObjectAnnotation(
        segmentation=encoded,
        height=mask.shape[0],
        width=mask.shape[1],
        name=name,
        measured=Extent(float(coco_mask.area(encoded)), (top, left, top + height, left + width)),
    )
