"""Steps at smaller inputs than the model's own: it learns to answer at every size that it may be asked at."""

import numpy as np
import torch.nn.functional as F

from mst.config import Config
from mst.data.sampling.training_set import Batch
from mst.model import MST
from mst.model.flops import PartsFlops, flops_of_parts


def side_of_step(step: int, config: Config) -> int:
    """Return the side in pixels of a step's inputs (`train.sides`), the same on all workers."""
    sides = config.train.sides or (config.model.image_size,)
    return sides[int(np.random.default_rng((config.seed, step, 1)).integers(len(sides)))]


def reduced(batch: Batch, side: int) -> Batch:
    """Bring the views of a batch, their masks and clicks to another side; pixel centres stay centres.

    Args:
        batch: of views of S x S pixels.
        side: in pixels, at most S.
    """
    size = batch.image.shape[-1]
    if side == size:
        return batch
    image = F.interpolate(batch.image.float(), (side, side), mode="bilinear", antialias=True)
    mask = F.interpolate(batch.mask, (side, side), mode="bilinear", antialias=True)
    clicks = batch.clicks.clone()
    is_click = clicks[..., 2:] >= 0
    clicks[..., :2] = ((clicks[..., :2] + 0.5) * side / size - 0.5).where(is_click, clicks[..., :2])
    return batch._replace(
        image=image.round().to(batch.image.dtype), mask=(mask > 0.5).to(mask.dtype), clicks=clicks
    )


def flops_by_side(model: MST, config: Config) -> dict[int, PartsFlops]:
    """Operations of an image's encoding and click at each side that a step may have."""
    sides = {config.model.image_size, *config.train.sides}
    return {side: flops_of_parts(model, side=side) for side in sides}
