"""Patch embedding at several scales from one kernel and one position grid (FlexiViT, arXiv:2212.08013)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]
"""Rows and columns of tokens."""


class Scale(NamedTuple):
    """The tokens of one scale on their way through the network."""

    patch_size: int
    """Side in pixels of the patch that a token stands for."""
    grid: Grid
    tokens: Tensor
    """(B, L, C), in row-major order."""
    positions: Tensor
    """(1, L, C), the tokens' position embedding."""


def resize_matrix(old: int, new: int) -> Tensor:
    """Matrix that resizes a flattened (old, old) patch kernel to (new, new), shape (new * new, old * old).

    FlexiViT's pseudo-inverse resize (section 3.4): with B the resize of a patch, the kernel pinv(B^T) w gives
    a resized patch the token that w gives the patch itself, as nearly as can be. Bicubic and antialiased, as
    in timm's `resample_patch_embed`.
    """
    basis = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resized = F.interpolate(basis, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    inverse: Tensor = torch.linalg.pinv(resized.view(old * old, new * new))
    return inverse.float()


def resize_positions(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize a grid of positions (1, C, rows, cols) to another one, bicubically as timm does."""
    if positions.shape[-2:] == tuple(grid):
        return positions
    return F.interpolate(positions, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)


class PatchEmbed(nn.Module):
    """Cuts an image into square patches of one of several sizes and projects each to a token.

    The kernel is learned at `patch_size`; for another size it is resized in each forward, so that all sizes
    share it and train it together.

    Args:
        in_channels: of the image.
        embed_dim: C of the tokens.
        patch_size: side in pixels for which the kernel is stored.
        other_sizes: sides of the other scales.
    """

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int, other_sizes: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, patch_size)
        for size in other_sizes:
            self.register_buffer(f"resize_{size}", resize_matrix(patch_size, size), persistent=False)

    def forward(self, image: Tensor, patch_size: int) -> Tensor:
        """Embed (B, in_channels, H, W) as tokens (B, L, C) in row-major order.

        Raises:
            ValueError: H or W is no multiple of `patch_size`.
        """
        if image.shape[-2] % patch_size or image.shape[-1] % patch_size:
            raise ValueError(
                f"image sides {tuple(image.shape[-2:])} are no multiples of the patch size {patch_size}"
            )
        tokens = F.conv2d(image, self._kernel(patch_size), self.proj.bias, stride=patch_size)
        return tokens.flatten(2).transpose(1, 2)

    def _kernel(self, patch_size: int) -> Tensor:
        if patch_size == self.patch_size:
            return self.proj.weight
        resize = self.get_buffer(f"resize_{patch_size}")
        resized = self.proj.weight.flatten(2) @ resize.mT
        return resized.view(*resized.shape[:2], patch_size, patch_size)


class PositionEmbed(nn.Module):
    """One learned grid of positions, resized bicubically to each scale's grid of tokens.

    Args:
        grid: rows and columns for which it is stored.
        embed_dim: C of the tokens.
    """

    def __init__(self, grid: Grid, embed_dim: int) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, embed_dim, *grid) * 0.02)

    def forward(self, grid: Grid) -> Tensor:
        """Return the positions of a grid, (1, rows * cols, C)."""
        return resize_positions(self.grid, grid).flatten(2).transpose(1, 2)
