"""Pictures: of what a model did, and of what it learns from."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from mst.clicks import EMPTY_SLOT, Click, Mask
from mst.data.pixels.images import RGB, resize
from mst.data.sampling.training_set import Batch
from mst.drawing import PLAIN, SCALES, captioned, draw_clicks, draw_tokens, overlay, side_by_side
from mst.evaluation.metrics import iou
from mst.model import Output
from mst.model.fusion import StageTrace

_SHEET_COLUMNS = 2
_THRESHOLD = 0.5
_MIN_HEIGHT = 320  # smaller pictures are enlarged to this, to be looked at
_ROW_HEIGHT = 352  # of a training sheet, whose five panels fit on a screen


def strip(image: RGB, clicks: Sequence[Click], panels: Sequence[tuple[str, Mask | None]]) -> RGB:
    """Put several views of an image side by side, each with a caption; the first one shows the clicks.

    Args:
        image: (H, W, 3).
        clicks: on the image.
        panels: caption and mask (H, W) of each view; None shows the image alone.
    """
    return _strip(image, clicks, panels, max(image.shape[0], _MIN_HEIGHT))


def _strip(
    image: RGB, clicks: Sequence[Click], panels: Sequence[tuple[str, Mask | None]], height: int
) -> RGB:
    scale = height / image.shape[0]
    size = (height, round(image.shape[1] * scale))
    image = resize(image, *size)
    views = []
    for number, (caption, mask) in enumerate(panels):
        # The mask is enlarged before it is drawn, so that its outline stays fine.
        view = image if mask is None else overlay(image, resize(mask.astype(np.float32), *size) > _THRESHOLD)
        view = draw_clicks(view, clicks, scale) if number == 0 else view
        views.append(captioned(view, (caption, PLAIN)))
    return side_by_side(views)


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
    for sample, image in enumerate(batch.image):
        placed = _placed(clicks[sample])
        panels = [
            (_counted(placed), None),
            ("object", _mask(batch.mask[sample], _THRESHOLD)),
            ("previous mask", _mask(prev_mask[sample], _THRESHOLD)),
        ]
        views.append(strip(_pixels(image), placed, panels))
    views += [np.zeros_like(views[0])] * (-len(views) % _SHEET_COLUMNS)
    rows = [side_by_side(views[i : i + _SHEET_COLUMNS]) for i in range(0, len(views), _SHEET_COLUMNS)]
    return np.concatenate(rows)


def training_sheet(batch: Batch, clicks: Tensor, prev_mask: Tensor, output: Output, threshold: float) -> RGB:
    """Show what a model made of a batch, a row for each sample.

    From left to right: image and clicks; previous mask; prediction; truth; and, of a model with extra scales,
    the tokens that its last fusion module selected of each, and the scale that guided the base tokens.

    Args:
        batch: B samples; tensors may be on any device.
        clicks: (B, N, 3) as `mst.clicks.click_tensor` packs them, with those that the model's errors added.
        prev_mask: (B, 1, S, S), probabilities.
        output: of the model for these.
        threshold: probability above which a pixel belongs to a mask.

    Returns:
        (H, W, 3), W at most 1792.
    """
    probability = output.logits.float().sigmoid()
    rows = []
    for sample, pixels in enumerate(batch.image):
        image, truth = _pixels(pixels), _mask(batch.mask[sample], _THRESHOLD)
        previous, prediction = (_mask(each[sample], threshold) for each in (prev_mask, probability))
        placed = _placed(clicks[sample])
        before = f"previous mask: IoU {iou(previous, truth):.2f}" if previous.any() else "no previous mask"
        panels = (
            (_counted(placed), None),
            (before, previous),
            (f"prediction: IoU {iou(prediction, truth):.2f}", prediction),
            ("truth" if truth.any() else "truth: no object", truth),
        )
        row = [_strip(image, placed, panels, _ROW_HEIGHT)]
        row += [_tokens_view(image, stage, sample) for stage in output.stages[-1:]]
        rows.append(side_by_side(row))
    return np.concatenate(rows)


def _tokens_view(image: RGB, stage: StageTrace, sample: int) -> RGB:
    scale = _ROW_HEIGHT / image.shape[0]
    view = draw_tokens(resize(image, _ROW_HEIGHT, _ROW_HEIGHT), stage.selections, sample, scale)
    chosen = int(stage.chosen[sample])
    names = [
        (f" {each.patch_size} px{' (chosen)' if number == chosen else ''}", SCALES[number % len(SCALES)])
        for number, each in enumerate(stage.selections)
    ]
    return captioned(view, ("tokens", PLAIN), *names)


def _pixels(image: Tensor) -> RGB:
    """(3, H, W) uint8 to (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def _placed(clicks: Tensor) -> list[Click]:
    """The clicks of one sample (N, 3), without the empty rows."""
    return [Click(row, col, label == 1) for row, col, label in clicks.tolist() if label != EMPTY_SLOT]


def _counted(clicks: Sequence[Click]) -> str:
    return f"{len(clicks)} click{'' if len(clicks) == 1 else 's'}"


def _mask(probabilities: Tensor, threshold: float) -> Mask:
    """(1, H, W) to (H, W)."""
    return np.asarray((probabilities[0] > threshold).cpu().numpy(), bool)
