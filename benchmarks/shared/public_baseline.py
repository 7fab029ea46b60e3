"""The public baseline as its notes describe it, computed the plain way: what MST's time is held against.

Attention by explicit matrix products and softmax, inside windows; the head upsamples four maps to stride 4
and fuses them concatenated. Modules are named as in SimpleClick's public checkpoints, so that a state of this
one is a file of that kind; `tests/mst/model/test_weights.py` shows that our baseline computes the same from
it.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mst.clicks import click_maps
from mst.config import Dimensions
from mst.model.mst import IMAGENET_MEAN, IMAGENET_STD


class Attention(nn.Module):
    """Softmax(Q K^T / sqrt(d)) V, matrix by matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) to (B, L, C)."""
        batch, length, width = tokens.shape
        shape = (batch, length, 3, self.heads, width // self.heads)
        query, key, value = self.qkv(tokens).view(shape).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(-1)
        mixed: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(batch, length, width))
        return mixed


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules that are called one after the other, under the names of the public files."""
    return nn.Sequential(OrderedDict(modules))


class Block(nn.Module):
    """Pre-norm transformer block that attends inside windows, or globally where `window` is 0."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = named(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """(B, side * side, C) to (B, side * side, C)."""
        normed = self.norm1(tokens)
        attended = self._in_windows(normed, side) if self.window else self.attn(normed)
        tokens = tokens + attended
        return tokens + self.mlp(self.norm2(tokens))

    def _in_windows(self, tokens: Tensor, side: int) -> Tensor:
        batch, width = len(tokens), tokens.shape[-1]
        count, window = side // self.window, self.window
        cut = tokens.view(batch, count, window, count, window, width).transpose(2, 3)
        mixed = self.attn(cut.reshape(-1, window**2, width))
        return mixed.view(batch, count, count, window, window, width).transpose(2, 3).reshape(tokens.shape)


class Backbone(nn.Module):
    """A plain ViT; its class token takes no part."""

    def __init__(self, dim: Dimensions, side: int, window: int, global_every: int) -> None:
        super().__init__()
        self.side = side
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim.embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + side**2, dim.embed_dim))
        self.patch_embed = named(proj=nn.Conv2d(3, dim.embed_dim, 16, 16))
        self.blocks = nn.ModuleList(
            Block(dim.embed_dim, dim.num_heads, 0 if number % global_every == 0 else window)
            for number in range(1, dim.depth + 1)
        )

    def forward(self, image: Tensor, embedded_coords: Tensor) -> Tensor:
        """An image (B, 3, S, S) and what is added to its tokens (B, C, h, w) to features (B, C, h, w)."""
        embedded = self.patch_embed(image) + embedded_coords
        tokens = embedded.flatten(2).mT + self.pos_embed[:, 1:]
        for block in self.blocks:
            tokens = block(tokens, self.side)
        return tokens.mT.reshape(embedded.shape)


class Neck(nn.Module):
    """Four maps from one, of strides 4, 8, 16 and 32."""

    def __init__(self, width: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        w4, w8, w16, w32 = widths
        half, doubled, halved = max(2 * w4, width // 2), max(w8, width // 2), max(w32, 2 * width)
        self.down_4 = nn.Sequential(
            *(nn.ConvTranspose2d(width, half, 2, 2), nn.GroupNorm(1, half), nn.GELU()),
            *(nn.ConvTranspose2d(half, half // 2, 2, 2), nn.GroupNorm(1, half // 2)),
            *(nn.Conv2d(half // 2, w4, 1), nn.GroupNorm(1, w4), nn.GELU()),
        )
        self.down_8 = nn.Sequential(
            *(nn.ConvTranspose2d(width, doubled, 2, 2), nn.GroupNorm(1, doubled)),
            *(nn.Conv2d(doubled, w8, 1), nn.GroupNorm(1, w8), nn.GELU()),
        )
        self.down_16 = nn.Sequential(nn.Conv2d(width, w16, 1), nn.GroupNorm(1, w16), nn.GELU())
        self.down_32 = nn.Sequential(
            *(nn.Conv2d(width, halved, 2, 2), nn.GroupNorm(1, halved)),
            *(nn.Conv2d(halved, w32, 1), nn.GroupNorm(1, w32), nn.GELU()),
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, C, h, w) to the four maps, finest first."""
        return [self.down_4(features), self.down_8(features), self.down_16(features), self.down_32(features)]


class Head(nn.Module):
    """Fuses the four maps at stride 4, concatenated."""

    def __init__(self, in_widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            named(conv=nn.Conv2d(each, width, 1), relu=nn.ReLU()) for each in in_widths
        )
        self.fusion_conv = named(conv=nn.Conv2d(len(in_widths) * width, width, 1), relu=nn.ReLU())
        self.conv_seg = nn.Conv2d(width, 1, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The four maps to logits (B, 1, 4h, 4w)."""
        upsampled = [
            F.interpolate(conv(each), size=maps[0].shape[-2:], mode="bilinear")
            for conv, each in zip(self.convs, maps, strict=True)
        ]
        logits: Tensor = self.conv_seg(self.fusion_conv(torch.cat(upsampled, 1)))
        return logits


class PublicBaseline(nn.Module):
    """SimpleClick on square images.

    Args:
        dim: width, depth, heads, neck and head.
        image_size: side in pixels.
        window: side in tokens of the windows.
        global_every: blocks whose number is a multiple of this attend globally.
    """

    def __init__(self, dim: Dimensions, image_size: int, window: int, global_every: int) -> None:
        super().__init__()
        self.patch_embed_coords = named(proj=nn.Conv2d(3, dim.embed_dim, 16, 16))
        self.backbone = Backbone(dim, image_size // 16, window, global_every)
        self.neck = Neck(dim.embed_dim, dim.neck_widths)
        self.head = Head(dim.neck_widths, dim.head_width)

    def forward(self, image: Tensor, clicks: Tensor, prev_mask: Tensor) -> Tensor:
        """Logits (B, 1, S, S); arguments as `mst.model.MST.forward` takes them."""
        height, width = image.shape[-2:]
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        coords = torch.cat([prev_mask, click_maps(clicks, height, width, radius=5.0)], 1)
        features = self.backbone((image - mean) / std, self.patch_embed_coords(coords))
        logits = self.head(self.neck(features))
        return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)
