"""The module in which multi-scale tokens and base tokens inform each other (MST Fig. 4)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.model.attention import CrossAttention
from mst.model.patch_embed import Grid, Scale
from mst.model.tokens import (
    chosen_scale,
    gather_tokens,
    reference_kernel,
    similarity,
    straight_through,
    top_k,
)

_DOWNSAMPLE = 4  # base tokens are averaged 4 x 4 before other scales attend to them


class Selection(NamedTuple):
    """What one fusion module selected from one scale."""

    patch_size: int
    grid: Grid
    scores: Tensor
    """(B, L), similarity of every token to the kernel (MST eq. 3)."""
    indices: Tensor
    """(B, K), the selected tokens, best first (MST eq. 4)."""
    tokens: Tensor
    """(B, K, C), the selected tokens themselves (MST eq. 5)."""


class StageTrace(NamedTuple):
    """What one fusion module did: enough for the contrastive loss and for a picture of the tokens."""

    kernel: Tensor
    """(B, C), mean of the clicked base tokens (MST eq. 2)."""
    selections: tuple[Selection, ...]
    """One for each extra scale, in the order of `patch_sizes`."""
    chosen: Tensor
    """(B,), which of the selections guided the base tokens; the most similar one where all did."""


class FusionStage(nn.Module):
    """One fusion module.

    1. Every extra scale attends to the down-sampled base tokens (scaled cross attention, "rapid update").
    2. Its tokens are scored against the clicked base tokens and the best are selected, with gradients.
    3. The base tokens attend to the selection of the scale with the highest mean score, or to all.

    Args:
        embed_dim: C.
        num_heads: of the attention that guides the base tokens.
        update_heads: of the attention that updates the extra scales.
        k_ratio: share of each scale's tokens that is selected.
        guided_by_all: whether the base tokens attend to every scale's selection (not in the paper).
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        update_heads: int,
        k_ratio: float,
        *,
        guided_by_all: bool = False,
    ) -> None:
        super().__init__()
        self.k_ratio, self.guided_by_all = k_ratio, guided_by_all
        self.update_scales = CrossAttention(embed_dim, update_heads)
        self.guide_base = CrossAttention(embed_dim, num_heads)

    def forward(
        self, base: Scale, scales: list[Scale], clicks: Tensor
    ) -> tuple[Scale, list[Scale], StageTrace]:
        """Update the tokens of all scales.

        Args:
            base: the base tokens.
            scales: the extra scales.
            clicks: (B, N, 3) as `mst.clicks.click_tensor` packs them.

        Returns:
            The base tokens and the extra scales, updated, and what was selected on the way.
        """
        kernel = reference_kernel(base, clicks)
        scales = self._update(scales, downsample(base.tokens, base.grid))
        selections = [self._select(scale, kernel) for scale in scales]
        chosen, means = chosen_scale([each.scores.gather(1, each.indices) for each in selections])
        # One batched attention serves all samples: every scale's selection is there as context, and what
        # belongs to a scale that was not chosen is masked.
        context, attend = [], []
        for number, (selection, scale) in enumerate(zip(selections, scales, strict=True)):
            positions = gather_tokens(scale.positions.expand(kernel.shape[0], -1, -1), selection.indices)
            factor = straight_through(means[:, number])[:, None, None]
            context.append((selection.tokens + positions) * factor)
            is_context = (chosen == number) | self.guided_by_all
            attend.append(is_context[:, None].expand_as(selection.indices))
        tokens = base.tokens + self.guide_base(base.tokens, torch.cat(context, 1), torch.cat(attend, 1))
        return base._replace(tokens=tokens), scales, StageTrace(kernel, tuple(selections), chosen)

    def _update(self, scales: list[Scale], context: Tensor) -> list[Scale]:
        tokens = torch.cat([scale.tokens for scale in scales], 1)
        tokens = tokens + self.update_scales(tokens, context)
        parts = tokens.split([scale.tokens.shape[1] for scale in scales], 1)
        return [scale._replace(tokens=part) for scale, part in zip(scales, parts, strict=True)]

    def _select(self, scale: Scale, kernel: Tensor) -> Selection:
        scores = similarity(kernel, scale.tokens)
        best, indices = top_k(scores, self.k_ratio)
        selected = gather_tokens(scale.tokens, indices) * straight_through(best)[..., None]
        return Selection(scale.patch_size, scale.grid, scores, indices, selected)


def downsample(tokens: Tensor, grid: Grid) -> Tensor:
    """Average tokens (B, L, C) over 4 x 4 neighbours; what is left over at the border is averaged alone."""
    image = tokens.mT.reshape(tokens.shape[0], -1, *grid)
    return F.avg_pool2d(image, _DOWNSAMPLE, ceil_mode=True, count_include_pad=False).flatten(2).mT
