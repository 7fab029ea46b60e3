"""A frozen ViT's tokens: what a backbone knows before it has learned anything of clicks."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mst.clicks import Click, Mask
from mst.data.pixels.arrays import AnyImage
from mst.data.pixels.images import RGB, resize
from mst.evaluation.peers.opening import opening
from mst.model import MST
from mst.model.patch_embed import COORD_CHANNELS
from mst.predictor import Segment

THRESHOLD = 0.5
"""Least cosine similarity to a positive click."""


def open_nearest_features(model: MST) -> Callable[[AnyImage], Segment]:
    """Return a method by which each pixel follows the click whose token is most like its own.

    Tokens are compared by the cosine of the ViT's last features, without clicks, previous mask and fusion
    modules; similarities are interpolated between tokens. A pixel as little like any positive click as
    `THRESHOLD` is background.

    Args:
        model: put into evaluation mode here; only its backbone is used.
    """
    model.eval()

    @opening
    def open_image(image: RGB) -> Segment:
        features = backbone_features(model, image)

        def segment(clicks: Sequence[Click]) -> Mask:
            wanted = _most_alike(features, [click for click in clicks if click.is_positive], image)
            unwanted = _most_alike(features, [click for click in clicks if not click.is_positive], image)
            return np.asarray((wanted > unwanted) & (wanted > THRESHOLD))

        return segment

    return open_image


@torch.inference_mode()
def backbone_features(model: MST, image: RGB) -> NDArray[np.float32]:
    """Return the ViT's last features of an image (H, W, 3), of length 1 each, (rows, cols, C)."""
    size, patch_size = model.config.image_size, model.config.patch_size
    pixels = torch.from_numpy(resize(image, size, size)).to(model.mean.device).permute(2, 0, 1) / 255
    without_clicks = pixels.new_zeros(COORD_CHANNELS, size, size)
    grid = (size // patch_size, size // patch_size)
    tokens = model.patch_embed(
        torch.cat([(pixels - model.mean) / model.std, without_clicks])[None], patch_size
    )
    tokens = tokens + model.pos_embed(grid)
    for block in model.blocks:
        tokens = block(tokens, grid)
    features = F.normalize(model.norm(tokens)[0].float(), dim=-1)
    return np.asarray(features.view(*grid, -1).cpu().numpy(), np.float32)


def _most_alike(features: NDArray[np.float32], clicks: Sequence[Click], image: RGB) -> NDArray[np.float32]:
    """Each pixel's cosine to the most similar token that was clicked, (H, W); -1 without clicks."""
    height, width = image.shape[:2]
    rows, cols = features.shape[:2]
    alike = np.full((height, width), -1, np.float32)
    for click in clicks:
        row = int((click.row + 0.5) * rows / height)
        col = int((click.col + 0.5) * cols / width)
        alike = np.maximum(alike, resize(features @ features[row, col], height, width))
    return alike
