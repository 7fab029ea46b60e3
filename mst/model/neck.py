"""SimpleFPN: four resolutions from the one of a plain ViT (Li et al. 2022, as SimpleClick uses it)."""

from torch import Tensor, nn


class SimpleFPN(nn.Module):
    """Maps base tokens, stride 16, to feature maps of strides 4, 8, 16 and 32.

    Args:
        embed_dim: C of the tokens.
        widths: channels of the four maps, finest first.
    """

    def __init__(self, embed_dim: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        half = max(2 * widths[0], embed_dim // 2)
        quarter = half // 2
        self.down_4 = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, half, 2, 2),
            _norm(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, 2),
            _norm(quarter),
            nn.Conv2d(quarter, widths[0], 1),
            _norm(widths[0]),
            nn.GELU(),
        )
        doubled = max(widths[1], embed_dim // 2)
        self.down_8 = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, doubled, 2, 2),
            _norm(doubled),
            nn.Conv2d(doubled, widths[1], 1),
            _norm(widths[1]),
            nn.GELU(),
        )
        self.down_16 = nn.Sequential(nn.Conv2d(embed_dim, widths[2], 1), _norm(widths[2]), nn.GELU())
        halved = max(widths[3], 2 * embed_dim)
        self.down_32 = nn.Sequential(
            nn.Conv2d(embed_dim, halved, 2, 2),
            _norm(halved),
            nn.Conv2d(halved, widths[3], 1),
            _norm(widths[3]),
            nn.GELU(),
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, C, h, w) to the four maps, finest (B, widths[0], 4h, 4w) first, coarsest h/2 x w/2 last."""
        return [self.down_4(features), self.down_8(features), self.down_16(features), self.down_32(features)]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(1, channels)
