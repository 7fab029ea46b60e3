"""Augmentation: which part of an image a training sample shows, and in which colours."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mst.clicks import Mask
from mst.config import DataConfig
from mst.data.pixels.images import RGB
from mst.data.pixels.runs import Runs, paint

_REFERENCE_SIZE = 448  # the crop for which the paper gives its resize range
_OBJECT_MARGIN = (1.1, 2.2)  # an object crop is this much larger than the object's box
_MIN_SIDE = 32  # pixels to which smaller objects' boxes are widened first
_LUMA = np.array([0.299, 0.587, 0.114])  # shares of red, green and blue in grey (BT.601)
_BLUR = (0.3, 2.0)  # standard deviation in pixels of a view of the reference size
_JPEG_QUALITY = (30, 90)

Box = tuple[float, float, float, float]
"""top, left, bottom, right in pixels; bottom and right are outside."""


@dataclass(frozen=True)
class View:
    """A box of an image, resized to a square and perhaps mirrored; beyond the image it shows zeros."""

    box: tuple[int, int, int, int]
    size: int
    flip: bool

    def of_image(self, image: RGB) -> RGB:
        """Cut (H, W, 3) to (size, size, 3)."""
        height, width = image.shape[:2]
        rows, cols = self._inside(height, width)
        return self._resized(image[rows, cols], height, width)

    def of_masks(self, masks: Sequence[Runs], height: int, width: int) -> Mask:
        """Cut the union of masks of an image of `height` x `width` pixels to (size, size).

        A pixel is the union's where that covers half of it.
        """
        rows, cols = self._inside(height, width)
        union = paint(masks, height, cols.start, cols.stop)[rows]
        return self._resized(np.where(union, np.uint8(255), np.uint8(0)), height, width) > 127

    def shows(self, box: Box) -> bool:
        """Whether any part of another box lies inside this one."""
        top, left, bottom, right = self.box
        return box[0] < bottom and box[1] < right and box[2] > top and box[3] > left

    def share(self, box: Box) -> float:
        """Share of the view that another box covers."""
        top, left, bottom, right = self.box
        rows, cols = min(box[2], bottom) - max(box[0], top), min(box[3], right) - max(box[1], left)
        return max(rows, 0) * max(cols, 0) / ((bottom - top) * (right - left))

    def _inside(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of the box that the image has."""
        top, left, bottom, right = self.box
        return slice(max(top, 0), min(bottom, height)), slice(max(left, 0), min(right, width))

    def _resized(self, inside: RGB, height: int, width: int) -> RGB:
        """Add what of the box lies beyond the image, and bring it to its size."""
        top, left, bottom, right = self.box
        border = (max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0))
        if any(border):
            inside = np.asarray(
                cv2.copyMakeBorder(inside, *border, cv2.BORDER_CONSTANT, value=(0, 0, 0)), np.uint8
            )
        # Averaging costs ten times as much as interpolation, and shows where a side is halved at least.
        halves = min(inside.shape[:2]) >= 2 * self.size
        interpolation = cv2.INTER_AREA if halves else cv2.INTER_LINEAR
        cut = cv2.resize(inside, (self.size, self.size), interpolation=interpolation)
        return np.asarray(cv2.flip(cut, 1) if self.flip else cut, np.uint8)


def choose_view(
    height: int, width: int, boxes: Sequence[Box], size: int, config: DataConfig, rng: np.random.Generator
) -> tuple[View, int | None]:
    """Draw the view of one sample: a random crop, the whole image, or the surroundings of an object.

    Args:
        height: of the image in pixels.
        width: of the image in pixels.
        boxes: of the image's objects; without any, no object can be shown.
        size: side of the square that the model sees.
        config: the shares of the three kinds and the range of the random resize.
        rng: the sample's own generator.

    Returns:
        The view, and which of the boxes it surrounds, if it is one of these views.
    """
    kind, subject = rng.random(), None
    if kind < config.crop_whole:
        box = (0, 0, height, width)
    elif kind < config.crop_whole + config.crop_object and boxes:
        subject = int(rng.integers(len(boxes)))
        box = _around(boxes[subject], height, width, rng)
    else:
        box = _random_square(height, width, size, config, rng)
    return View(box, size, bool(rng.random() < config.flip)), subject


def recolour(image: RGB, config: DataConfig, rng: np.random.Generator) -> RGB:
    """Change brightness, contrast and the balance of colours, (H, W, 3) to (H, W, 3)."""
    contrast = 1 + rng.uniform(-config.contrast, config.contrast)
    brightness = 255 * rng.uniform(-config.brightness, config.brightness)
    shift = rng.integers(-config.rgb_shift, config.rgb_shift + 1, size=3)
    levels = (np.arange(256)[:, None] - 127.5) * contrast + 127.5 + brightness + shift
    image = np.asarray(cv2.LUT(image, levels.round().clip(0, 255).astype(np.uint8)[:, None]), dtype=np.uint8)
    if config.saturation or config.hue or config.grey:
        image = np.asarray(cv2.transform(image, _colour_matrix(config, rng)), np.uint8)
    return image


def degrade(image: RGB, config: DataConfig, rng: np.random.Generator) -> RGB:
    """Blur a view and leave the traces of a JPEG in it, (S, S, 3) to (S, S, 3), as often as is asked for."""
    if happens(config.blur, rng):
        sigma = rng.uniform(*_BLUR) * len(image) / _REFERENCE_SIZE
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    if happens(config.jpeg, rng):
        quality = int(rng.integers(*_JPEG_QUALITY, endpoint=True))
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        image = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), np.uint8)
    return image


def happens(probability: float, rng: np.random.Generator) -> bool:
    """Draw whether something happens; what is switched off draws nothing, and changes no other draw."""
    return probability > 0 and bool(rng.random() < probability)


def _colour_matrix(config: DataConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """What turns hues around the axis of greys and scales the distance to it; luma stays, (3, 3)."""
    scale = 1 + rng.uniform(-config.saturation, config.saturation)
    angle = np.deg2rad(rng.uniform(-config.hue, config.hue))
    if happens(config.grey, rng):
        scale = 0.0
    axis = np.full(3, 3**-0.5)
    cross = np.cross(np.eye(3), axis)  # of the axis with a vector (Rodrigues' formula)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
    grey = np.tile(_LUMA, (3, 1))
    return np.asarray(grey + scale * (np.eye(3) - grey) @ turn)


def _random_square(
    height: int, width: int, size: int, config: DataConfig, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A square of the image as a crop of `size` sees it after the random resize."""
    factor = rng.uniform(*config.resize) * size / _REFERENCE_SIZE
    side = max(1, round(size / factor))
    # A square that is larger than the image has it somewhere inside.
    top, left = (
        int(rng.integers(min(0, room), max(0, room), endpoint=True)) for room in (height - side, width - side)
    )
    return top, left, top + side, left + side


def _around(box: Box, height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """An object's box, widened, as far as it lies in the image."""
    factor = rng.uniform(*_OBJECT_MARGIN)
    rows, cols = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half_height, half_width = (
        max(side, _MIN_SIDE) * factor / 2 for side in (box[2] - box[0], box[3] - box[1])
    )
    return (
        max(0, round(rows - half_height)),
        max(0, round(cols - half_width)),
        min(height, round(rows + half_height)),
        min(width, round(cols + half_width)),
    )
