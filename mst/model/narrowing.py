"""From the width of the ViT to that of the late part."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mst.model.attention import NORM_EPS
from mst.model.patch_embed import Scale


class Narrowing(nn.Module):
    """Brings tokens of several blocks to one narrower token each, and the extra scales to the same width.

    A frozen ViT's last tokens say what a place is, and earlier ones more of where its borders run; so each
    block that is looked at has a LayerNorm and a projection, and the late part begins with their sum.

    Args:
        embed_dim: C of the ViT.
        width: of the late part.
        looks: how many blocks are looked at, the last included.
        has_scales: whether there are extra scales.
    """

    def __init__(self, embed_dim: int, width: int, looks: int, *, has_scales: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim, eps=NORM_EPS) for _ in range(looks))
        self.projs = nn.ModuleList(nn.Linear(embed_dim, width) for _ in range(looks))
        self.scale_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS) if has_scales else None
        self.scale_proj = nn.Linear(embed_dim, width) if has_scales else None

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Tokens (B, L, C) of each block to (B, L, width)."""
        each = [proj(norm(one)) for one, norm, proj in zip(tokens, self.norms, self.projs, strict=True)]
        return torch.stack(each).sum(0)

    def scale(self, scale: Scale) -> Scale:
        """Bring an extra scale's tokens and positions (.., L, C) to the late part's width."""
        assert self.scale_norm is not None
        assert self.scale_proj is not None
        tokens = self.scale_proj(self.scale_norm(scale.tokens))
        positions = nn.functional.linear(scale.positions, self.scale_proj.weight)
        return scale._replace(tokens=tokens, positions=positions)
