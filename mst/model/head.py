"""The all-MLP segmentation head (SegFormer's, as SimpleClick uses it)."""

import torch.nn.functional as F
from torch import Tensor, nn

_AROUND = 5  # pixels of the finest map, a side, that a refinement sees at once


class Refinement(nn.Module):
    """A separable convolution, added to what it sees: what a pixel's neighbours say of a border.

    The rest of the head looks at each place by itself. An addition to the paper, off by default
    (`model.head_convs`).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, _AROUND, padding=_AROUND // 2, groups=width)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        return maps + F.gelu(self.mix(self.around(maps)))


class MLPHead(nn.Module):
    """Brings feature maps to one width, fuses them at the finest resolution and predicts a logit.

    A 1 x 1 convolution commutes with bilinear upsampling, so the fusion of the concatenated maps is computed
    map by map before they are upsampled: the same result at a fraction of the cost.

    Args:
        in_widths: channels of the maps; the first is one of the finest.
        width: channels inside.
        dropout: before the last layer, in training alone.
        convs: refinements of the fused map.
    """

    def __init__(self, in_widths: tuple[int, ...], width: int, dropout: float, convs: int = 0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in in_widths)
        self.fusion_conv = nn.Conv2d(width * len(in_widths), width, 1)
        self.refinements = nn.Sequential(*(Refinement(width) for _ in range(convs)))
        self.dropout = nn.Dropout2d(dropout)
        self.conv_seg = nn.Conv2d(width, 1, 1)

    def forward(self, features: list[Tensor], context: Tensor | None = None) -> Tensor:
        """(B, widths[i], h_i, w_i), none finer than the first, to logits (B, 1, h_0, w_0).

        `context` (B, width, h, w), where there is one, is added to the fused maps.
        """
        finest = features[0].shape[-2:]
        shares = self.fusion_conv.weight.chunk(len(features), dim=1)
        total: Tensor | None = None  # summed in place: at stride 4 every map is large
        for conv, share, feature in zip(self.convs, shares, features, strict=True):
            bias = self.fusion_conv.bias if total is None else None
            fused = F.conv2d(F.relu(conv(feature), inplace=True), share, bias)
            total = fused if total is None else total.add_(F.interpolate(fused, size=finest, mode="bilinear"))
        assert total is not None
        if context is not None:
            total = total + F.interpolate(context, size=finest, mode="bilinear")
        refined = self.refinements(F.relu(total, inplace=True))
        logits: Tensor = self.conv_seg(self.dropout(refined))
        return logits
