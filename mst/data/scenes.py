"""Synthetic scenes: textured shapes of very different sizes that occlude each other and nest.

They look like nothing, but they ask of a model what photos ask: follow a region that the clicks mean, up to
its border, whatever its size, colours and neighbours, whole or part.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data as photos

from mst.clicks import Mask
from mst.data.pixels.images import RGB

_Pixels = NDArray[np.float32]
_Points = NDArray[np.float64]
_Shape = Callable[[float, np.random.Generator], _Points]
_Pattern = Callable[[int, int, np.random.Generator], _Pixels]

_SIZES = (0.07, 0.5)  # an object's radius as a share of the scene's shorter side
_PARTS = 0.35  # probability that an object has a part inside it
_HOLE = 0.15  # probability that an object is a ring
_PHOTO = 0.1  # probability that an object is textured by a photo
_CONTRAST = 45  # largest difference of a texture's two colours in each channel, of 255
_VISIBLE = 0.25  # an object that shows less than this share of itself is not annotated
_MIN_PIXELS = 30
_LARGE = 12  # radius in pixels above which objects have holes and parts


@dataclass(frozen=True)
class SceneObject:
    """One object: its shape's name, its area before others hid some of it, and what is visible, (H, W)."""

    shape: str
    full_area: int
    mask: Mask
    parts: tuple[Mask, ...] = ()

    def behind(self, occluder: Mask) -> "SceneObject":
        """Return what is left of the object behind another one."""
        parts = (part & ~occluder for part in self.parts)
        return replace(self, mask=self.mask & ~occluder, parts=_large_enough(parts))

    @property
    def is_visible(self) -> bool:
        """Whether enough of it shows to be annotated."""
        return bool(self.mask.sum() >= max(_MIN_PIXELS, _VISIBLE * self.full_area))


@dataclass(frozen=True)
class Scene:
    """A picture and all of its objects, back to front."""

    image: RGB
    objects: tuple[SceneObject, ...]


def draw_scene(height: int, width: int, rng: np.random.Generator, backgrounds: Sequence[RGB]) -> Scene:
    """Draw one scene of 4 to 14 objects.

    Args:
        height: in pixels.
        width: in pixels.
        rng: the scene's own generator.
        backgrounds: photos that backgrounds and some textures are cut from.
    """
    canvas = _background(height, width, rng, backgrounds)
    objects: list[SceneObject] = []
    for _ in range(rng.integers(4, 15)):
        radius = min(height, width) * np.exp(rng.uniform(*np.log(_SIZES)))
        centre = rng.uniform((0, 0), (height, width))
        shape, coverage = _random_shape(height, width, radius, centre, rng)
        _paint(canvas, coverage, rng, backgrounds)
        parts: tuple[Mask, ...] = ()
        if radius > _LARGE and rng.random() < _PARTS:
            part_centre = centre + rng.uniform(-0.3, 0.3, 2) * radius
            part = np.minimum(coverage, _random_shape(height, width, 0.4 * radius, part_centre, rng)[1])
            _paint(canvas, part, rng, backgrounds)
            parts = _large_enough([part > 0.5])
        mask = coverage > 0.5
        objects = [each.behind(mask) for each in objects]
        objects.append(SceneObject(shape, int(mask.sum()), mask, parts))
    noise = rng.normal(0, rng.uniform(0, 6), canvas.shape)
    return Scene(
        (canvas + noise).clip(0, 255).astype(np.uint8), tuple(each for each in objects if each.is_visible)
    )


def _large_enough(masks: Iterable[Mask]) -> tuple[Mask, ...]:
    return tuple(mask for mask in masks if mask.sum() >= _MIN_PIXELS)


@cache
def shipped_photos() -> tuple[RGB, ...]:
    """Return the colour photos that scikit-image carries in its package, as (H, W, 3)."""
    names = ("astronaut", "chelsea", "coffee", "rocket", "retina")
    return tuple(getattr(photos, name)() for name in names)


def _polar(angles: _Points, radii: _Points) -> _Points:
    return np.stack([radii * np.sin(angles), radii * np.cos(angles)], axis=1)


def _blob(radius: float, rng: np.random.Generator) -> _Points:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.arange(2, 6)
    heights = rng.uniform(0, 0.35, 4) / waves * 2
    radii = 1 + (heights * np.cos(np.outer(angles, waves) + rng.uniform(0, 2 * np.pi, 4))).sum(axis=1)
    return _polar(angles, radius * radii)


def _ellipse(radius: float, rng: np.random.Generator) -> _Points:
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return _polar(angles, np.full(64, radius)) * (1, rng.uniform(0.4, 1))


def _rectangle(radius: float, rng: np.random.Generator) -> _Points:
    return radius * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * (0.85, rng.uniform(0.3, 0.85))


def _star(radius: float, rng: np.random.Generator) -> _Points:
    points = int(rng.integers(3, 8))
    angles = np.linspace(0, 2 * np.pi, 2 * points, endpoint=False)
    radii = np.where(np.arange(2 * points) % 2, rng.uniform(0.45, 0.8), 1.0)
    return _polar(angles, radius * radii)


SHAPES: dict[str, _Shape] = {"blob": _blob, "ellipse": _ellipse, "rectangle": _rectangle, "star": _star}
"""Outlines, (points, 2) as (row, col) around the origin, for a radius in pixels."""


def _stripes(height: int, width: int, rng: np.random.Generator) -> _Pixels:
    rows, cols = np.mgrid[:height, :width]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
    wave = np.sin(2 * np.pi * (rows * np.sin(angle) + cols * np.cos(angle)) / period)
    return np.asarray((wave + 1) / 2, np.float32)


def _checks(height: int, width: int, rng: np.random.Generator) -> _Pixels:
    rows, cols = np.mgrid[:height, :width] // int(rng.integers(4, 16))
    return np.asarray((rows + cols) % 2, np.float32)


def _clouds(height: int, width: int, rng: np.random.Generator) -> _Pixels:
    scale = int(rng.integers(2, 12))
    coarse = rng.random((height // scale + 2, width // scale + 2)).astype(np.float32)
    return np.asarray(
        cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1), np.float32
    )


def _plain(height: int, width: int, rng: np.random.Generator) -> _Pixels:
    return np.full((height, width), rng.random(), np.float32)


_PATTERNS: tuple[_Pattern, ...] = (_plain, _plain, _stripes, _checks, _clouds)


def _background(height: int, width: int, rng: np.random.Generator, backgrounds: Sequence[RGB]) -> _Pixels:
    if rng.random() < 0.5:
        return _texture(height, width, rng)
    return _photo_patch(height, width, rng, backgrounds)


def _photo_patch(height: int, width: int, rng: np.random.Generator, backgrounds: Sequence[RGB]) -> _Pixels:
    photo = backgrounds[int(rng.integers(len(backgrounds)))]
    scale = rng.uniform(0.4, 1.0)
    rows, cols = int(photo.shape[0] * scale), int(photo.shape[1] * scale)
    top, left = rng.integers(photo.shape[0] - rows + 1), rng.integers(photo.shape[1] - cols + 1)
    patch = cv2.resize(
        photo[top : top + rows, left : left + cols], (width, height), interpolation=cv2.INTER_AREA
    )
    return np.asarray(patch[:, ::-1] if rng.random() < 0.5 else patch, np.float32)


def _texture(height: int, width: int, rng: np.random.Generator) -> _Pixels:
    """A pattern between two colours under a gradient of light."""
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](height, width, rng)[..., None]
    first = rng.uniform(0, 255, 3)
    second = first + rng.uniform(-_CONTRAST, _CONTRAST, 3)
    rows, cols = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.4) * (rows * np.sin(angle) + cols * np.cos(angle))
    return np.asarray((first + (second - first) * pattern) * light[..., None], np.float32)


def _random_shape(
    height: int, width: int, radius: float, centre: _Points, rng: np.random.Generator
) -> tuple[str, _Pixels]:
    """A shape's name, and how much of each pixel it covers, 0 .. 1: a little blurred, as by a lens."""
    shape = str(rng.choice(list(SHAPES)))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    outline = SHAPES[shape](radius, rng) @ turn + centre
    drawing = np.zeros((height, width), np.uint8)
    cv2.fillPoly(drawing, [_fixed_point(outline)], 255, cv2.LINE_AA, shift=4)
    if radius > _LARGE and rng.random() < _HOLE:
        cv2.fillPoly(drawing, [_fixed_point(centre + 0.45 * (outline - centre))], 0, cv2.LINE_AA, shift=4)
    blurred = cv2.GaussianBlur(drawing, (0, 0), rng.uniform(0.4, 0.9))
    return shape, np.asarray(blurred, np.float32) / np.float32(255)


def _fixed_point(outline: _Points) -> NDArray[np.int32]:
    """(row, col) to OpenCV's (x, y) in sixteenths of a pixel."""
    return np.asarray((outline[:, ::-1] * 16).round(), np.int32)


def _paint(canvas: _Pixels, coverage: _Pixels, rng: np.random.Generator, backgrounds: Sequence[RGB]) -> None:
    """Lay a texture over the canvas where `coverage` says, in place."""
    left, top, width, height = cv2.boundingRect((coverage > 0).astype(np.uint8))
    if not width:  # the shape lies outside the picture
        return
    if rng.random() < _PHOTO:
        texture = _photo_patch(height, width, rng, backgrounds)
    else:
        texture = _texture(height, width, rng)
    box = np.s_[top : top + height, left : left + width]
    canvas[box] += coverage[box][..., None] * (texture - canvas[box])
