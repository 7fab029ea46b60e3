"""Write a folder of synthetic scenes shaped like COCO-LVIS.

    python -m mst.data.synthetic --out data/synthetic --train 600 --val 60

    OUT/train/000000000000.jpg ...            OUT/val/...  OUT/test/...
    OUT/annotations/instances_train.json      COCO: whole objects, and a crowd here and there
    OUT/annotations/lvis_train.json           LVIS: parts, and of every second image the whole objects again

so that readers, the join of both annotations, training and evaluation run on it as on the real thing. The
same seed gives the same folder.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mst.clicks import Mask
from mst.data.scenes import SHAPES, Scene, draw_scene, shipped_photos

_SPLITS = ("train", "val", "test")
_CATEGORIES = [{"id": number, "name": name} for number, name in enumerate([*SHAPES, "part"], 1)]
_CATEGORY_IDS = {category["name"]: category["id"] for category in _CATEGORIES}
_CROWD = 0.05  # share of scenes with an object that is annotated as a crowd
_JPEG_QUALITY = 92

_Entry = dict[str, Any]


def write_data_set(out: Path, counts: Sequence[int], *, seed: int = 0, processes: int | None = None) -> None:
    """Write the folder.

    Args:
        out: the folder to write; scenes of an earlier run in it are replaced.
        counts: number of scenes to train on, to validate on and to test on.
        seed: of all scenes; scene i of a split does not depend on how many there are.
        processes: that draw at the same time; by default one for each core.
    """
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        for split, count in zip(_SPLITS, counts, strict=True):
            (out / split).mkdir(exist_ok=True)
            drawn = list(pool.map(partial(_write_scene, out, split, seed), range(count), chunksize=8))
            images = [image for image, _, _ in drawn]
            coco = [entry for _, entries, _ in drawn for entry in entries]
            lvis = [entry for _, _, entries in drawn for entry in entries]
            for name, entries in (("instances", coco), ("lvis", lvis)):
                tables = {
                    "images": images,
                    "annotations": [{"id": number, **entry} for number, entry in enumerate(entries, 1)],
                    "categories": _CATEGORIES,
                }
                (out / "annotations" / f"{name}_{split}.json").write_text(json.dumps(tables))


def _write_scene(out: Path, split: str, seed: int, index: int) -> tuple[_Entry, list[_Entry], list[_Entry]]:
    """Draw and write one scene; return its image entry, its COCO and its LVIS annotations."""
    rng = np.random.default_rng((seed, _SPLITS.index(split), index))
    height, width = (int(side) for side in rng.choice([(192, 256), (224, 224), (256, 192)]))
    scene = draw_scene(height, width, rng, shipped_photos())
    file_name = f"{index:012d}.jpg"
    bgr = cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(out / split / file_name), bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    image = {
        "id": index,
        "file_name": file_name,
        "coco_url": f"http://synthetic.invalid/{split}/{file_name}",
        "height": height,
        "width": width,
    }
    wholes, parts = _annotations(scene, index)
    lvis = parts + wholes if index % 2 else parts
    coco = [{**entry, "iscrowd": 0} for entry in wholes]
    if rng.random() < _CROWD and coco:
        coco[0] = {**coco[0], "iscrowd": 1}
    return image, coco, lvis


def _annotations(scene: Scene, image_id: int) -> tuple[list[_Entry], list[_Entry]]:
    wholes = [_annotation(each.mask, each.shape, image_id) for each in scene.objects]
    parts = [_annotation(part, "part", image_id) for each in scene.objects for part in each.parts]
    return wholes, parts


def _annotation(mask: Mask, category: str, image_id: int) -> _Entry:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "image_id": image_id,
        "category_id": _CATEGORY_IDS[category],
        "segmentation": _polygons(mask) or {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [float(side) for side in coco_mask.toBbox(rle)],
    }


def _polygons(mask: Mask) -> list[list[float]] | None:
    """The mask's outlines as COCO's polygons; None where it has a hole, which polygons cannot say.

    Outlines run through pixel centres. On a grid twice as fine they lie a quarter of a pixel from the true
    border, near enough for COCO's rasterizer to give back the same mask.
    """
    fine = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    outlines, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():
        return None
    return [[float(value) for value in (outline.ravel() + 0.5) / 2] for outline in outlines]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write synthetic scenes in COCO-LVIS form.")
    parser.add_argument("--out", type=Path, default=Path("data/synthetic"), help="folder to write")
    parser.add_argument("--train", type=int, default=600, help="training scenes")
    parser.add_argument("--val", type=int, default=60, help="validation scenes")
    parser.add_argument("--test", type=int, default=60, help="test scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of all scenes")
    arguments = parser.parse_args()
    counts = (arguments.train, arguments.val, arguments.test)
    write_data_set(arguments.out, counts, seed=arguments.seed)


if __name__ == "__main__":
    main()
