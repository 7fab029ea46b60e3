"""Pictures of what a model did."""

from collections.abc import Sequence

import cv2
import numpy as np

from mst.clicks import Click, Mask
from mst.data.images import RGB, resize

_MASK = np.array((56, 220, 160), np.uint8)
_TINT, _DIMMED = 0.25, 0.4
_CLICKS = {True: (46, 204, 113), False: (231, 76, 60)}
_CAPTION_HEIGHT = 24
_MIN_HEIGHT = 320  # smaller pictures are enlarged to this, to be looked at


def overlay(image: RGB, mask: Mask) -> RGB:
    """Show a mask (H, W) on its image (H, W, 3): tinted and outlined, while all else is dimmed."""
    out = (image * _DIMMED).astype(np.uint8)
    out[mask] = image[mask] * (1 - _TINT) + _MASK * _TINT
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(out, outlines, -1, _MASK.tolist(), 1), np.uint8)


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
        cv2.circle(out, at, 7, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(out, at, 6, _CLICKS[click.is_positive], -1, cv2.LINE_AA)
        cv2.putText(
            out, str(number), (at[0] - 4, at[1] + 4), cv2.FONT_HERSHEY_PLAIN, 0.8, (0, 0, 0), 1, cv2.LINE_AA
        )
    return out


def strip(image: RGB, clicks: Sequence[Click], panels: Sequence[tuple[str, Mask | None]]) -> RGB:
    """Put several views of an image side by side, each with a caption; the first one shows the clicks.

    Args:
        image: (H, W, 3).
        clicks: on the image.
        panels: caption and mask (H, W) of each view; None shows the image alone.
    """
    scale = max(1.0, _MIN_HEIGHT / image.shape[0])
    views = []
    for number, (caption, mask) in enumerate(panels):
        view = image if mask is None else overlay(image, mask)
        view = resize(view, round(image.shape[0] * scale), round(image.shape[1] * scale))
        if number == 0:
            view = draw_clicks(view, clicks, scale)
        views.append(_captioned(view, caption))
    return np.concatenate(views, axis=1)


def _captioned(view: RGB, caption: str) -> RGB:
    bar = np.full((_CAPTION_HEIGHT, view.shape[1], 3), 24, np.uint8)
    cv2.putText(bar, caption, (8, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([bar, view])
