"""One and the same request, a picture and three clicks, in the words of each protocol; how masks compare."""

import base64

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mst.clicks import Mask
from tests.conftest import CLICKS, picture, png

HEIGHT, WIDTH = 90, 140
IMAGE = base64.b64encode(png(picture())).decode()
NO_IMAGE = base64.b64encode(b"no image").decode()
XY = [[click.col, click.row] for click in CLICKS]

CVAT = {"image": IMAGE, "pos_points": XY[:2], "neg_points": XY[2:], "obj_bbox": None}

MARKS = [
    {"type": "point", "data": xy, "label": int(click.is_positive)}
    for xy, click in zip(XY, CLICKS, strict=True)
]


def x_anylabeling(**more) -> dict:
    params = {"conf_threshold": 0.0, "iou_threshold": 0.0, "epsilon_factor": 0.001, "marks": MARKS}
    return {"model": "mst", "image": f"data:image/png;base64,{IMAGE}", "params": params, **more}


CLICKS_TENSOR = [[*xy, int(click.is_positive)] for xy, click in zip(XY, CLICKS, strict=True)]


def tensor(name, datatype, data, shape=None) -> dict:
    return {"name": name, "datatype": datatype, "shape": shape or list(np.shape(data)), "data": data}


INPUTS = [tensor("image", "BYTES", [IMAGE]), tensor("clicks", "FP32", CLICKS_TENSOR)]

RECORD = {
    "image": IMAGE,
    "clicks": [{"x": c.col, "y": c.row, "is_positive": c.is_positive} for c in CLICKS],
}


def filled(rings, height: int = HEIGHT, width: int = WIDTH) -> Mask:
    """Polygons as a mask, by even and odd; their coordinates run along the pixels' borders."""
    out = np.zeros((height, width), bool)
    for ring in rings:
        flat = [coordinate for point in ring for coordinate in point]
        out ^= coco_mask.decode(coco_mask.frPyObjects([flat], height, width)[0]).astype(bool)
    return out


def without_holes(mask) -> np.ndarray:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), outlines, -1, 1, cv2.FILLED).astype(bool)


def iou(one, other) -> float:
    return (one & other).sum() / (one | other).sum()
