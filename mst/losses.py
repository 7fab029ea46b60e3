"""Training losses: L = L_seg + weight * L_c (MST eq. 8)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mst.config import LossConfig
from mst.model.fusion import Selection, StageTrace
from mst.model.mst import Output


class Losses(NamedTuple):
    """The loss and its parts, scalars."""

    total: Tensor
    segmentation: Tensor
    contrastive: Tensor


def total_loss(output: Output, mask: Tensor, config: LossConfig) -> Losses:
    """L = L_seg + `config.contrastive` * L_c (MST eq. 8).

    Args:
        output: of the model, for (B, 1, H, W).
        mask: (B, 1, H, W), 1 on the object and 0 elsewhere.
        config: which focal loss, and the weights.
    """
    focal = focal_loss(output.logits, mask, config.alpha, config.gamma, normalized=config.normalized)
    segmentation = focal.mean()
    contrastive = segmentation.new_zeros(())
    if config.contrastive and output.stages:
        contrastive = triplet_patch_loss(output.stages, mask).mean()
    return Losses(segmentation + config.contrastive * contrastive, segmentation, contrastive)


def focal_loss(logits: Tensor, mask: Tensor, alpha: float, gamma: float, *, normalized: bool) -> Tensor:
    """Focal loss (Lin et al. 2017) or normalized focal loss (RITM, section 3.3) of each sample.

    With p the probability given to a pixel's true class and w = (1 - p)^gamma, the focal loss is the mean of
    -alpha_t * w * log(p) over the sample's pixels. The normalized one divides their sum by the sum of w
    instead, held constant, so that the gradient does not fade as the prediction gets better.

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W), 1 on the object and 0 elsewhere.
        alpha: weight of object pixels; background pixels weigh 1 - alpha.
        gamma: focusing exponent, >= 0.
        normalized: which of the two.

    Returns:
        (B,).
    """
    logits, mask = logits.float().flatten(1), mask.float().flatten(1)
    log_p = F.logsigmoid(torch.where(mask > 0.5, logits, -logits))
    weight = (1 - log_p.exp()) ** gamma
    alpha_t = torch.where(mask > 0.5, alpha, 1 - alpha)
    scale = weight.detach().sum(1).clamp(min=1e-6) if normalized else mask.shape[1]
    return -(alpha_t * weight * log_p).sum(1) / scale


def triplet_patch_loss(stages: Sequence[StageTrace], mask: Tensor) -> Tensor:
    """Contrastive loss of the selected tokens (MST eq. 6-7) of each sample.

    q is the kernel of the clicked tokens; d_p and d_n are its distances to the selected tokens that lie on
    the object and beside it. Each pair of one and the other adds log(1 + exp(d_p - d_n)), divided by the
    number N of pairs; scales are summed, fusion stages averaged. Where a scale's selection has no token of
    one kind it adds nothing.

    Args:
        stages: what each fusion module selected.
        mask: (B, 1, H, W), 1 on the object and 0 elsewhere.

    Returns:
        (B,), at least 0.
    """
    terms = [_scale_loss(stage.kernel, selection, mask) for stage in stages for selection in stage.selections]
    return torch.stack(terms).sum(0) / len(stages)


def _scale_loss(kernel: Tensor, selection: Selection, mask: Tensor) -> Tensor:
    distance = torch.linalg.vector_norm(selection.tokens.float() - kernel.float()[:, None], dim=-1)  # (B, K)
    on_object = token_labels(mask, selection)
    pairs = on_object[:, :, None] & ~on_object[:, None, :]  # (B, K, K)
    penalty = F.softplus(distance[:, :, None] - distance[:, None, :])
    return (penalty * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)


def token_labels(mask: Tensor, selection: Selection) -> Tensor:
    """y_j of MST eq. 6: whether each selected token lies on the object, by at least half of its patch.

    Args:
        mask: (B, 1, H, W), 1 on the object and 0 elsewhere.
        selection: K tokens of one scale.

    Returns:
        (B, K) bool.
    """
    covered = F.avg_pool2d(mask.float(), selection.patch_size).flatten(1) >= 0.5
    return covered.gather(1, selection.indices)
