"""The module in which multi-scale tokens and base tokens inform each other (MST Fig. 4)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.model.attention import CrossAttention, CrossBlock
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
        mlp_ratio: width of an MLP after each attention, in multiples of C; 0 for none.
        own_scales: number of extra scales, where each has attentions of its own; 0 where all share them.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        update_heads: int,
        k_ratio: float,
        *,
        guided_by_all: bool = False,
        mlp_ratio: int = 0,
        own_scales: int = 0,
    ) -> None:
        super().__init__()
        self.k_ratio, self.guided_by_all = k_ratio, guided_by_all

        def attention(heads: int) -> nn.Module:
            return CrossBlock(embed_dim, heads, mlp_ratio) if mlp_ratio else CrossAttention(embed_dim, heads)

        def attentions(heads: int) -> nn.Module:
            own = (attention(heads) for _ in range(own_scales))
            return nn.ModuleList(own) if own_scales else attention(heads)

        self.update_scales = attentions(update_heads)
        self.guide_base = attentions(num_heads)

    def forward(
        self, base: Scale, scales: Sequence[Scale], clicks: Tensor
    ) -> tuple[Scale, list[Scale], StageTrace]:
        """Update the tokens of all scales.

        Args:
            base: the base tokens.
            scales: the extra scales.
            clicks: (B, N, 3) as `mst.clicks.click_tensor` packs them.

        Returns:
            The base tokens and the extra scales, updated, and what was selected on the way.
        """
        scales = self.update(base, scales)
        base, trace = self.guide(base, scales, clicks)
        return base, scales, trace

    def update(self, base: Scale, scales: Sequence[Scale]) -> list[Scale]:
        """Let the extra scales attend to the down-sampled base tokens ("rapid update"); knows of no click."""
        context = downsample(base.tokens, base.grid)
        if isinstance(self.update_scales, nn.ModuleList):
            return [
                scale._replace(tokens=scale.tokens + update(scale.tokens, context))
                for update, scale in zip(self.update_scales, scales, strict=True)
            ]
        tokens = torch.cat([scale.tokens for scale in scales], 1)
        tokens = tokens + self.update_scales(tokens, context)
        parts = tokens.split([scale.tokens.shape[1] for scale in scales], 1)
        return [scale._replace(tokens=part) for scale, part in zip(scales, parts, strict=True)]

    def guide(self, base: Scale, scales: Sequence[Scale], clicks: Tensor) -> tuple[Scale, StageTrace]:
        """Let the base tokens attend to what is selected of updated scales; arguments as of `forward`."""
        kernel = reference_kernel(base, clicks)
        selections = [self._select(scale, kernel) for scale in scales]
        chosen, means = chosen_scale([each.scores.gather(1, each.indices) for each in selections])
        contexts, is_guide = [], []
        for number, (selection, scale) in enumerate(zip(selections, scales, strict=True)):
            positions = gather_tokens(scale.positions.expand(kernel.shape[0], -1, -1), selection.indices)
            factor = straight_through(means[:, number])[:, None, None]
            contexts.append((selection.tokens + positions) * factor)
            is_guide.append((chosen == number) | self.guided_by_all)
        tokens = base.tokens + self._guide(base.tokens, contexts, is_guide)
        return base._replace(tokens=tokens), StageTrace(kernel, tuple(selections), chosen)

    def _guide(self, tokens: Tensor, contexts: list[Tensor], is_guide: list[Tensor]) -> Tensor:
        """The update of base tokens by each scale's context (B, K, C), in the samples (B,) that it guides."""
        if isinstance(self.guide_base, nn.ModuleList):
            updates = [
                guide(tokens, context) * guides[:, None, None]
                for guide, context, guides in zip(self.guide_base, contexts, is_guide, strict=True)
            ]
            return torch.stack(updates).sum(0)
        # One batched attention serves all samples: every scale's selection is there as context, and what
        # belongs to a scale that does not guide a sample is masked.
        attend = [
            guides[:, None].expand(context.shape[:2])
            for context, guides in zip(contexts, is_guide, strict=True)
        ]
        update: Tensor = self.guide_base(tokens, torch.cat(contexts, 1), torch.cat(attend, 1))
        return update

    def _select(self, scale: Scale, kernel: Tensor) -> Selection:
        scores = similarity(kernel, scale.tokens)
        best, indices = top_k(scores, self.k_ratio)
        selected = gather_tokens(scale.tokens, indices) * straight_through(best)[..., None]
        return Selection(scale.patch_size, scale.grid, scores, indices, selected)


def downsample(tokens: Tensor, grid: Grid) -> Tensor:
    """Average tokens (B, L, C) over 4 x 4 neighbours; what is left over at the border is averaged alone."""
    image = tokens.mT.reshape(tokens.shape[0], -1, *grid)
    return F.avg_pool2d(image, _DOWNSAMPLE, ceil_mode=True, count_include_pad=False).flatten(2).mT
