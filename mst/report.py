"""Pictures: of what a model did, and of what it learns from."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mst.clicks import EMPTY_SLOT, Click, Mask
from mst.data.annotations import ImageRecord
from mst.data.images import RGB, resize
from mst.data.training_set import Batch

_MASK = np.array((56, 220, 160), np.uint8)
_TINT, _DIMMED = 0.25, 0.4
_CLICKS = {True: (46, 204, 113), False: (231, 76, 60)}
_CAPTION_HEIGHT = 24
_SHEET_COLUMNS = 2
_THRESHOLD = 0.5
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


def contact_sheet(batch: Batch, clicks: Tensor, prev_mask: Tensor) -> RGB:
    """Show each sample of a batch: image and clicks, object, previous mask.

    Args:
        batch: B samples.
        clicks: (B, N, 3) as `mst.clicks.click_tensor` packs them, with those that the model's errors added.
        prev_mask: (B, 1, S, S), probabilities.

    Returns:
        (H, W, 3), samples in two columns.
    """
    views = []
    for sample, (image, mask) in enumerate(zip(batch.image, batch.mask, strict=True)):
        placed = [
            Click(row, col, label == 1) for row, col, label in clicks[sample].tolist() if label != EMPTY_SLOT
        ]
        panels = [
            (f"{len(placed)} clicks", None),
            ("object", mask[0].numpy() > _THRESHOLD),
            ("previous mask", prev_mask[sample, 0].numpy() > _THRESHOLD),
        ]
        views.append(strip(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), placed, panels))
    views += [np.zeros_like(views[0])] * (-len(views) % _SHEET_COLUMNS)
    rows = [np.concatenate(views[i : i + _SHEET_COLUMNS], 1) for i in range(0, len(views), _SHEET_COLUMNS)]
    return np.concatenate(rows)


def object_sizes(records: Iterable[ImageRecord]) -> NDArray[np.float64]:
    """Return each object's share of its image's height, width and area, (N, 3)."""
    sizes = [
        (
            (each.box[2] - each.box[0]) / record.height,
            (each.box[3] - each.box[1]) / record.width,
            each.area / (record.height * record.width),
        )
        for record in records
        for each in record.objects
        if not each.is_stuff
    ]
    return np.asarray(sizes, np.float64).reshape(-1, 3)


def draw_sizes(sizes: NDArray[np.float64], title: str) -> RGB:
    """Draw how large objects are: height against width, as the paper's Fig. 6, and a histogram of their area.

    Args:
        sizes: (N, 3) as `object_sizes` gives them.
        title: of the picture.

    Returns:
        (H, W, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    plane, bars = figure.subplots(1, 2)
    density = plane.hexbin(*sizes[:, 1::-1].T, gridsize=30, extent=(0, 1, 0, 1), bins="log", mincnt=1)
    figure.colorbar(density, ax=plane, label="objects")
    plane.set(
        xlabel="width / image width", ylabel="height / image height", xlim=(0, 1), ylim=(0, 1), aspect=1
    )
    bars.hist(np.sqrt(sizes[:, 2].clip(0, 1)), bins=40, range=(0, 1), color="#2a78c8")
    bars.set(xlabel="square root of the share of the image", ylabel="objects", xlim=(0, 1))
    bars.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: {len(sizes):,} objects")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]


def _captioned(view: RGB, caption: str) -> RGB:
    bar = np.full((_CAPTION_HEIGHT, view.shape[1], 3), 24, np.uint8)
    cv2.putText(bar, caption, (8, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([bar, view])
