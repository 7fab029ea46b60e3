"""Pictures of a data set: samples as a model will see them, and how large its objects are."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mst.clicks import EMPTY_SLOT, Click
from mst.data.annotations import ImageRecord
from mst.data.images import RGB
from mst.data.training_set import Batch
from mst.report import strip

_COLUMNS = 2
_THRESHOLD = 0.5


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
    views += [np.zeros_like(views[0])] * (-len(views) % _COLUMNS)
    rows = [np.concatenate(views[i : i + _COLUMNS], 1) for i in range(0, len(views), _COLUMNS)]
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
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
