"""One set of masks from the COCO and LVIS annotations of the same image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from upath import UPath

from mst.data.annotations import ImageRecord, ObjectAnnotation, Records, malformed
from mst.data.pixels.encode import annotate
from mst.data.pixels.runs import paint
from mst.data.problems import Problem
from mst.data.readers.segmentations import OTHER_SIZE

MIN_AREA = 80
"""Objects smaller than this, in pixels, are left out."""

MIN_STUFF_AREA = 500
"""Stuff of which less than this, in pixels, is left beside the objects is left out."""

_BOX_IOU = 0.7
_SAME_OBJECT = 0.7  # mask IoU above which a COCO mask repeats an LVIS mask
_DUPLICATE = 0.85  # mask IoU above which one LVIS mask repeats another
_INSIDE = 0.9  # share of an object that lies in another, above which it is a part of it

RULES = {
    "min_area": MIN_AREA,
    "min_stuff_area": MIN_STUFF_AREA,
    "box_iou": _BOX_IOU,
    "same_object_iou": _SAME_OBJECT,
    "duplicate_iou": _DUPLICATE,
    "inside": _INSIDE,
}
"""What `join_records` and `nest` decide by, as an index's manifest keeps it."""


SMALL = f"object smaller than {MIN_AREA} px"
EMPTY = "empty mask"
REPEATED = "object that repeats another"
COVERED = f"stuff of which less than {MIN_STUFF_AREA} px are beside the objects"

_Sieved = tuple[list[ObjectAnnotation], list[Problem]]
"""What of an image's objects is kept, and what is left out."""


def join(finer: Sequence[ObjectAnnotation], coarser: Sequence[ObjectAnnotation]) -> _Sieved:
    """Join two annotations of an image as the field's COCO+LVIS training set was made.

    All of `finer` (LVIS) without near duplicates, then what of `coarser` (COCO) no mask of `finer` repeats;
    objects under `MIN_AREA` are left out of both. Masks may nest: a part inside a whole is no duplicate.
    """
    kept: list[ObjectAnnotation] = []
    fine, left_out = _large_enough(finer)
    coarse, small = _large_enough(coarser)
    for each in fine:
        if not _repeats(each, kept, _DUPLICATE):
            kept.append(each)
    alone = [each for each in coarse if not _repeats(each, kept, _SAME_OBJECT)]
    taken = {id(each) for each in [*kept, *alone]}
    repeated = [
        Problem(REPEATED, each.name, is_fault=False) for each in [*fine, *coarse] if id(each) not in taken
    ]
    return kept + alone, left_out + small + repeated


def join_records(
    finer: Sequence[ImageRecord], coarser: Sequence[ImageRecord], stuff: Sequence[ImageRecord] = ()
) -> Records:
    """Join lists of records by image path; an image of one list alone is joined to nothing.

    Args:
        finer: LVIS, and what else is kept whole.
        coarser: COCO instances.
        stuff: regions that are added to both, as far as no object covers them.
    """
    fine, coarse, background = _by_path(finer), _by_path(coarser), _by_path(stuff)
    joined: list[ImageRecord] = []
    problems: list[Problem] = []
    for record in {**background, **coarse, **fine}.values():
        sized = [_of_size(record, each) for each in (fine, coarse, background)]
        (finer_ones, _), (coarser_ones, _), (regions, _) = sized
        objects, left_out = join(finer_ones, coarser_ones)
        rest, covered = _uncovered(regions, objects)
        for _, wrong in (*sized, (objects, left_out), (rest, covered)):
            problems += wrong
        joined.append(record.with_objects(objects + rest))
    return Records(joined, tuple(problems))


def _of_size(record: ImageRecord, part: Mapping[UPath, ImageRecord]) -> _Sieved:
    """The objects of a part whose image has the size that the record says; sources may disagree."""
    kept, left_out = [], []
    for each in part[record.path].objects if record.path in part else ():
        if (each.height, each.width) == (record.height, record.width):
            kept.append(each)
        else:
            here, there = f"{each.width} x {each.height}", f"{record.width} x {record.height}"
            what = f"its image has {here} pixels, to others {there}"
            left_out.append(Problem(OTHER_SIZE, each.name, what))
    return kept, left_out


def join_nested(
    finer: Sequence[ImageRecord] = (), coarser: Sequence[ImageRecord] = (), stuff: Sequence[ImageRecord] = ()
) -> Records:
    """Join lists of records as `join_records` does, and note which object is a part of which (`nest`)."""
    joined = join_records(finer, coarser, stuff)
    return replace(joined, images=[record.with_objects(nest(record.objects)) for record in joined])


def nest(objects: Sequence[ObjectAnnotation]) -> list[ObjectAnnotation]:
    """Note for each object the smallest larger one that contains nine tenths of it."""
    if not objects:
        return []
    encoded = [each.rle() for each in objects]
    areas = np.array([each.area for each in objects], np.float64)
    # Against a crowd pycocotools divides by the first mask's area alone.
    inside = np.asarray(coco_mask.iou(encoded, encoded, [1] * len(encoded))) >= _INSIDE
    candidates = np.where(inside & (areas[None] > areas[:, None]), areas[None], np.inf)
    parents = np.where(np.isfinite(candidates.min(1)), candidates.argmin(1), -1)
    return [
        replace(each, parent=int(parent), measured=each.extent)
        for each, parent in zip(objects, parents, strict=True)
    ]


def _by_path(records: Sequence[ImageRecord]) -> dict[UPath, ImageRecord]:
    """Records by image; those of the same image become one with all their objects."""
    found: dict[UPath, ImageRecord] = {}
    for record in records:
        earlier = found[record.path].objects if record.path in found else ()
        found[record.path] = record.with_objects([*earlier, *record.objects])
    return found


def _uncovered(stuff: Sequence[ObjectAnnotation], objects: Sequence[ObjectAnnotation]) -> _Sieved:
    """What of stuff no object covers, where that is large enough."""
    if not stuff:
        return [], []
    covered = paint([each.runs() for each in objects], stuff[0].height, 0, stuff[0].width)
    kept, left_out = [], []
    for each in stuff:
        mask = each.decode() & ~covered
        if mask.sum() >= MIN_STUFF_AREA:
            kept.append(replace(annotate(mask, each.name), is_stuff=True))
        else:
            left_out.append(Problem(COVERED, each.name, is_fault=False))
    return kept, left_out


def _large_enough(objects: Sequence[ObjectAnnotation]) -> _Sieved:
    kept, left_out = [], []
    for each in objects:
        if each.area >= MIN_AREA:
            kept.append(each)
        elif each.area:
            left_out.append(Problem(SMALL, each.name, f"{each.area:g} px", is_fault=False))
        else:
            left_out.append(Problem(EMPTY, each.name, "no pixel of the image is the object's"))
    return kept, left_out


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
