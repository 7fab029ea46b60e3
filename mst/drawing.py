"""What pictures are made of: an image with a mask, clicks or tokens on it, and its caption."""

from collections.abc import Sequence

import cv2
import numpy as np

from mst.clicks import Click, Mask
from mst.data.pixels.images import RGB
from mst.model.fusion import Selection

Colour = tuple[int, int, int]

PLAIN: Colour = (235, 235, 235)
SCALES: tuple[Colour, ...] = ((255, 179, 0), (79, 179, 255), (236, 100, 175), (170, 130, 255))
"""Colours of a model's extra scales, in the order of `patch_sizes`; more scales begin again."""

_MASK = (56, 220, 160)
_MASK_TINT, _TOKEN_TINT, _DIMMED = 0.25, 0.4, 0.4
_CLICKS = {True: (46, 204, 113), False: (231, 76, 60)}
_FONT, _FONT_SIZE, _CLICK_FONT_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 0.4
_CAPTION_HEIGHT, _GAP = 24, 8
_BACKGROUND = 24  # level of grey


def overlay(image: RGB, mask: Mask) -> RGB:
    """Show a mask (H, W) on its image (H, W, 3): tinted and outlined, while all else is dimmed."""
    out = _tinted(_dimmed(image), image, mask, _MASK, _MASK_TINT)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(out, outlines, -1, _MASK, 2), np.uint8)


def draw_clicks(image: RGB, clicks: Sequence[Click], scale: float) -> RGB:
    """Draw positive clicks green and negative ones red, numbered by their order.

    Args:
        image: (H, W, 3), enlarged by `scale`.
        clicks: in pixels of the image as it was.
        scale: see above.
    """
    out = image.copy()
    for number, click in enumerate(clicks, 1):
        at = (int((click.col + 0.5) * scale), int((click.row + 0.5) * scale))
        cv2.circle(out, at, 8, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(out, at, 7, _CLICKS[click.is_positive], -1, cv2.LINE_AA)
        width = cv2.getTextSize(str(number), _FONT, _CLICK_FONT_SIZE, 1)[0][0]
        below = (at[0] - width // 2, at[1] + 4)
        cv2.putText(out, str(number), below, _FONT, _CLICK_FONT_SIZE, (0, 0, 0), 1, cv2.LINE_AA)
    return out


def draw_tokens(image: RGB, selections: Sequence[Selection], sample: int, scale: float) -> RGB:
    """Show the patches of selected tokens, tinted and outlined in their scale's colour, on the image in grey.

    Args:
        image: (H, W, 3), enlarged by `scale`.
        selections: of one fusion module, of B samples.
        sample: which of them.
        scale: see above.
    """
    # Without colours of its own, for the scales' to be told from them.
    grey = np.asarray(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    out = _dimmed(grey)
    shown = [
        (each.patch_size, SCALES[number % len(SCALES)], _squares(each, sample, scale))
        for number, each in enumerate(selections)
    ]
    shown.sort(key=lambda each: -each[0])  # small patches on top of large ones, whose outlines come last
    for _, colour, squares in shown:
        mask = np.zeros(image.shape[:2], bool)
        for top, left, bottom, right in squares:
            mask[top:bottom, left:right] = True
        out = _tinted(out, grey, mask, colour, _TOKEN_TINT)
    for _, colour, squares in reversed(shown):
        for top, left, bottom, right in squares:
            cv2.rectangle(out, (left, top), (right - 1, bottom - 1), colour, 1)
    return out


def captioned(view: RGB, *texts: tuple[str, Colour]) -> RGB:
    """Put a bar with a caption, of parts in colours, above a view."""
    bar, left = np.full((_CAPTION_HEIGHT, view.shape[1], 3), _BACKGROUND, np.uint8), 8
    for text, colour in texts:
        cv2.putText(bar, text, (left, 17), _FONT, _FONT_SIZE, colour, 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, _FONT, _FONT_SIZE, 1)[0][0]
    return np.concatenate([bar, view])


def side_by_side(views: Sequence[RGB]) -> RGB:
    """Put views of one height beside each other, with narrow gaps."""
    gap = np.full((views[0].shape[0], _GAP, 3), _BACKGROUND, np.uint8)
    return np.concatenate([each for view in views for each in (gap, view)][1:], axis=1)


def _squares(selection: Selection, sample: int, scale: float) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom and right of each selected patch, in pixels of the enlarged image."""
    side = selection.patch_size * scale
    places = (divmod(index, selection.grid[1]) for index in selection.indices[sample].tolist())
    return [
        (round(row * side), round(col * side), round((row + 1) * side), round((col + 1) * side))
        for row, col in places
    ]


def _dimmed(image: RGB) -> RGB:
    return (image * _DIMMED).astype(np.uint8)


def _tinted(out: RGB, image: RGB, mask: Mask, colour: Colour, tint: float) -> RGB:
    out[mask] = image[mask] * (1 - tint) + np.array(colour) * tint
    return out
