"""What the head sees of the image itself, beside the backbone's tokens."""

from torch import Tensor, nn

_HIDDEN = 32


class Detail(nn.Module):
    """Shows the head image, previous mask and click maps at a quarter of their size.

    A plain ViT's tokens say what a patch of 16 pixels is, and little of where in it a border runs; a head on
    these alone learns borders over millions of samples. Two convolutions keep what lies finer. An addition
    to the paper, off by default (`model.detail`).

    Args:
        in_channels: of the pixels.
        width: channels of the map.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, _HIDDEN, 3, 2, 1),
            nn.GroupNorm(1, _HIDDEN),
            nn.GELU(),
            nn.Conv2d(_HIDDEN, width, 3, 2, 1),
            nn.GroupNorm(1, width),
            nn.GELU(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, width, H / 4, W / 4)."""
        seen: Tensor = self.layers(pixels)
        return seen
