"""One set of masks from the COCO and LVIS annotations of the same image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mst.data.annotations import ImageRecord, ObjectAnnotation, malformed

MIN_AREA = 80
"""Objects smaller than this, in pixels, are left out."""

_BOX_IOU = 0.7
_SAME_OBJECT = 0.7  # mask IoU above which a COCO mask repeats an LVIS mask
_DUPLICATE = 0.85  # mask IoU above which one LVIS mask repeats another


def join(finer: Sequence[ObjectAnnotation], coarser: Sequence[ObjectAnnotation]) -> list[ObjectAnnotation]:
    """Join two annotations of an image as the field's COCO+LVIS training set was made.

    All of `finer` (LVIS) without near duplicates, then what of `coarser` (COCO) no mask of `finer` repeats;
    objects under `MIN_AREA` are left out of both. Masks may nest: a part inside a whole is no duplicate.
    """
    kept: list[ObjectAnnotation] = []
    for each in _large_enough(finer):
        if not _repeats(each, kept, _DUPLICATE):
            kept.append(each)
    return kept + [each for each in _large_enough(coarser) if not _repeats(each, kept, _SAME_OBJECT)]


def join_records(finer: Sequence[ImageRecord], coarser: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Join two lists of records by image path; an image of one list alone is joined to nothing."""
    coarser_by_path = {record.path: record for record in coarser}
    joined = []
    for record in finer:
        twin = coarser_by_path.pop(record.path, None)
        joined.append(record.with_objects(join(record.objects, twin.objects if twin else ())))
    return joined + [record.with_objects(join((), record.objects)) for record in coarser_by_path.values()]


def _large_enough(objects: Sequence[ObjectAnnotation]) -> list[ObjectAnnotation]:
    return [each for each in objects if each.area >= MIN_AREA]


def _repeats(candidate: ObjectAnnotation, kept: Sequence[ObjectAnnotation], mask_iou: float) -> bool:
    if not kept:
        return False
    # Boxes are cheap, so they choose the few masks worth comparing.
    overlaps = _box_ious(candidate, kept)
    near = [each.rle() for each, overlap in zip(kept, overlaps, strict=True) if overlap > _BOX_IOU]
    if not near:
        return False
    with malformed(candidate.name):
        return bool((coco_mask.iou([candidate.rle()], near, [0] * len(near)) > mask_iou).any())


def _box_ious(one: ObjectAnnotation, many: Sequence[ObjectAnnotation]) -> NDArray[np.float64]:
    box, boxes = np.asarray(one.box), np.asarray([each.box for each in many])
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersection = sides.clip(min=0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - intersection
    return np.asarray(intersection / union.clip(min=1e-9))
