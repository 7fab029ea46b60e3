"""The outlines of a mask as valid polygons: rings that neither cross nor touch themselves or each other.

A mask is outlined on a grid twice as fine as its pixels, a quarter of a pixel inside the object. Parts may
hang together by the corners of two pixels alone; there outlines pass twice, and the passes are drawn apart.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from mst.clicks import Mask
from serve.wire.schemas import Polygon

_APART = 0.2  # of the fine grid's pixels: half of what two passes are drawn apart

_MOST_CORNERS = 5000  # of a part that is simplified carefully; noise, which has more, would take seconds

_Ring = NDArray[np.float64]
"""(N, 2), x and y in pixels of the image."""


def polygons(mask: Mask, tolerance: float = 0.0, min_area: float = 0.0) -> list[Polygon]:
    """Outline each part of a mask (H, W), and the holes in it, along the pixels' borders.

    Args:
        mask: the object.
        tolerance: pixels by which a simplified outline may leave the true one; 0 keeps every corner, and
            such polygons decode to the mask they came from.
        min_area: parts and holes of fewer pixels are left out.

    Returns:
        Valid polygons in the sense of OGC: rings are simple, and holes lie inside without crossing.
    """
    fine = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    rings, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = hierarchy[0, :, 3].tolist() if hierarchy is not None else []
    kept = [True] * len(rings)
    # Nothing has fewer pixels than its longer side: where there are no specks, nothing need be measured.
    if any(max(cv2.boundingRect(ring)[2:]) / 2 - 1 < min_area for ring in rings):
        kept = [size >= min_area for size in _sizes(mask, rings, parents)]
    if _has_corners(mask):
        rings = [_apart(ring, fine) if kept[number] else ring for number, ring in enumerate(rings)]
    parts: dict[int, list[int]] = {number: [number] for number, above in enumerate(parents) if above < 0}
    for number, above in enumerate(parents):
        if above >= 0 and kept[number]:
            parts[above].append(number)
    wanted = [part for number, part in parts.items() if kept[number]]
    exact = [[(rings[each][:, 0] + 0.5) / 2 for each in part] for part in wanted]
    found = _simplified(exact, tolerance) if tolerance > 0 else exact
    return [Polygon(outer=_points(outer), holes=[_points(hole) for hole in holes]) for outer, *holes in found]


def _simplified(exact: list[list[_Ring]], tolerance: float) -> list[list[_Ring]]:
    """Leave out corners; where that lets rings cross, only so many that none do."""
    quick = [[_approximated(ring, tolerance) for ring in part] for part in exact]
    crossing = np.flatnonzero(~shapely.is_valid([shapely.Polygon(outer, holes) for outer, *holes in quick]))
    for number in crossing.tolist():
        outer, *holes = exact[number]
        quick[number] = exact[number]
        if sum(map(len, exact[number])) <= _MOST_CORNERS:
            careful = shapely.simplify(shapely.Polygon(outer, holes), tolerance, preserve_topology=True)
            if careful.is_valid and not careful.is_empty:
                quick[number] = _rings(careful)
    return quick


def _rings(polygon: shapely.Polygon) -> list[_Ring]:
    return [np.asarray(ring.coords)[:-1] for ring in (polygon.exterior, *polygon.interiors)]


def _approximated(ring: _Ring, tolerance: float) -> _Ring:
    simpler = cv2.approxPolyDP(ring.astype(np.float32), tolerance, closed=True)
    return simpler[:, 0].astype(np.float64) if len(simpler) >= 3 else ring


def _has_corners(mask: Mask) -> bool:
    """Whether two pixels, of the object or of its background, touch at a corner alone."""
    left, right = mask[:, :-1], mask[:, 1:]
    return bool(((left[:-1] == right[1:]) & (left[1:] == right[:-1]) & (left[:-1] != left[1:])).any())


def _apart(ring: NDArray[Any], fine: NDArray[np.uint8]) -> NDArray[Any]:
    """Draw the passes of a ring (N, 1, 2) through corners on their own sides.

    Where the ring steps from p to q, fine pixels across a corner that background has on both sides, it does
    so a little on the side that it comes from: p, the corner and q move that way. The other pass, of this
    ring or of another, comes from the other side.
    """
    here = ring[:, 0]
    after = np.roll(here, -1, axis=0)
    passes = (np.abs(after - here) == 1).all(axis=1)
    passes &= (fine[here[:, 1], after[:, 0]] == 0) & (fine[after[:, 1], here[:, 0]] == 0)
    if not passes.any():
        return ring
    points = here.astype(np.float64)
    arrives = np.roll(passes, 1)
    towards_before = np.sign(np.roll(here, 1, axis=0) - here)
    towards_after = np.sign(after - here)
    points[passes] += _APART * towards_before[passes]
    points[arrives] += _APART * towards_after[arrives]
    corners = (here + after) / 2 + _APART * (towards_before + np.roll(towards_after, -1, axis=0)) / 2
    places = np.flatnonzero(passes) + 1
    return np.insert(points, places, corners[passes], axis=0)[:, None]


def _points(ring: _Ring) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in ring]


def _sizes(mask: Mask, rings: Sequence[Any], parents: Sequence[int]) -> list[int]:
    """Pixels of the part or hole that each ring of the fine grid goes around."""
    pixels = mask.astype(np.uint8)
    _, parts, of_parts, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    _, holes, of_holes, _ = cv2.connectedComponentsWithStats(1 - pixels, connectivity=4)  # as findContours
    sizes = []
    for ring, parent in zip(rings, parents, strict=True):
        col, row = ring[ring[:, 0, 1].argmin(), 0]  # the highest pixel; below such a one, a hole begins
        labels, stats, row = (parts, of_parts, row) if parent < 0 else (holes, of_holes, row + 1)
        sizes.append(int(stats[labels[row // 2, col // 2], cv2.CC_STAT_AREA]))
    return sizes
