"""Patch embedding at several scales from one kernel and one position grid (FlexiViT, arXiv:2212.08013)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_CHANNELS = 3
COORD_CHANNELS = 3  # previous mask, positive clicks, negative clicks

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
    in timm's `resample_patch_embed`. Rows and columns are resized alike and apart from each other, so that B
    is a Kronecker product, and so is its pseudo-inverse.
    """
    inverse = torch.linalg.pinv(_resize_axis(old, new).mT)
    return torch.kron(inverse, inverse).float()


def resize_positions(positions: Tensor, grid: Sequence[int]) -> Tensor:
    """Resize a grid of positions (1, C, rows, cols) to another one, bicubically as timm does."""
    if positions.shape[-2:] == tuple(grid):
        return positions
    rows, cols = (
        _resize_axis(old, new, positions.device) for old, new in zip(positions.shape[-2:], grid, strict=True)
    )
    resized = rows @ positions.double() @ cols.mT  # in a precision that autocast leaves as it is
    return resized.to(positions.dtype)


def _resize_axis(old: int, new: int, device: torch.device | None = None) -> Tensor:
    """Matrix (new, old) of fp64 that resizes an axis; products with two are faster than torch's resizing."""
    basis = torch.eye(old, dtype=torch.float64, device=device)[None, None]
    return F.interpolate(basis, size=(new, old), mode="bicubic", antialias=True, align_corners=False)[0, 0]


class PatchEmbed(nn.Module):
    """Cuts an image and its maps into square patches of one of several sizes and projects each to a token.

    A patch's token is the sum of two projections, one of the image and one of the maps that say what was
    clicked and predicted (SimpleClick). Both kernels are learned at `patch_size` and serve every size, so
    that all sizes train them together.

    Args:
        embed_dim: C of the tokens.
        patch_size: side in pixels for which the kernels are stored.
        other_sizes: sides of the other scales.
        coords_dim: of the maps' tokens; None for C. Another one cannot be added to the image's.
    """

    def __init__(
        self, embed_dim: int, patch_size: int, other_sizes: Sequence[int], coords_dim: int | None = None
    ) -> None:
        super().__init__()
        self.patch_size, self.other_sizes = patch_size, tuple(other_sizes)
        self.proj = nn.Conv2d(IMAGE_CHANNELS, embed_dim, patch_size, patch_size)
        self.coords = nn.Conv2d(COORD_CHANNELS, coords_dim or embed_dim, patch_size, patch_size)
        for size in other_sizes:
            self.register_buffer(f"resize_{size}", resize_matrix(patch_size, size), persistent=False)

    def forward(self, pixels: Tensor, patch_size: int) -> Tensor:
        """Embed (B, 6, H, W), the image's channels before the maps', as tokens (B, L, C) in row-major order.

        Raises:
            ValueError: H or W is no multiple of `patch_size`.
        """
        assert self.proj.bias is not None
        assert self.coords.bias is not None
        kernel = torch.cat([self.proj.weight, self.coords.weight], 1)
        return self._project(pixels, patch_size, kernel, self.proj.bias + self.coords.bias)

    def image(self, pixels: Tensor, patch_size: int) -> Tensor:
        """Embed an image (B, 3, H, W) without its maps; as `forward`."""
        assert self.proj.bias is not None
        return self._project(pixels, patch_size, self.proj.weight, self.proj.bias)

    def maps(self, maps: Tensor) -> Tensor:
        """Embed previous mask and click maps (B, 3, H, W) as base tokens (B, L, `coords_dim`)."""
        assert self.coords.bias is not None
        return self._project(maps, self.patch_size, self.coords.weight, self.coords.bias)

    @torch.no_grad()
    def settle(self, *, of_image: bool) -> None:
        """Resize kernels once for all forwards; `unsettle` forgets them.

        Args:
            of_image: whether images are embedded without their maps.
        """
        kernel = self.proj.weight
        if not of_image:
            kernel = torch.cat([kernel, self.coords.weight], 1)
        for size in self.other_sizes:
            if size < self.patch_size:
                self.register_buffer(f"settled_{size}", self._resized(kernel, size), persistent=False)

    def _resized(self, kernel: Tensor, patch_size: int) -> Tensor:
        return kernel.flatten(2) @ self.get_buffer(f"resize_{patch_size}").mT

    def _project(self, pixels: Tensor, patch_size: int, kernel: Tensor, bias: Tensor) -> Tensor:
        """Project patches.

        A kernel k resized by R gives k R x to a patch x: where the patches are the larger, it is they that
        are resized, by the transpose, which is less work than to apply a larger kernel.
        """
        if pixels.shape[-2] % patch_size or pixels.shape[-1] % patch_size:
            raise ValueError(
                f"image sides {tuple(pixels.shape[-2:])} are no multiples of the patch size {patch_size}"
            )
        patches = to_patches(pixels, patch_size)
        if patch_size > self.patch_size:
            patches = patches @ self.get_buffer(f"resize_{patch_size}")
        if patch_size < self.patch_size:
            settled = getattr(self, f"settled_{patch_size}", None)
            kernel = self._resized(kernel, patch_size) if settled is None else settled
        # Not a convolution: oneDNN 3.12's in bf16 is wrong on CPUs with AMX (six channels, kernels from 16).
        return F.linear(patches.flatten(2), kernel.flatten(1), bias)


def to_patches(pixels: Tensor, patch_size: int) -> Tensor:
    """Cut (B, channels, H, W) into square patches (B, L, channels, patch_size * patch_size)."""
    batch, channels, height, width = pixels.shape
    rows, cols = height // patch_size, width // patch_size
    cut = pixels.reshape(batch, channels, rows, patch_size, cols, patch_size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * cols, channels, patch_size**2)


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
        settled: Tensor | None = getattr(self, f"settled_{grid[0]}_{grid[1]}", None)
        if settled is not None:
            return settled
        return resize_positions(self.grid, grid).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def settle(self, grid: Grid) -> None:
        """Resize the positions of a grid once for all forwards; `unsettle` forgets them."""
        self.register_buffer(f"settled_{grid[0]}_{grid[1]}", self(grid).clone(), persistent=False)


def unsettle(module: nn.Module) -> None:
    """Forget what was resized once, in a module whose weights may change from now on."""
    for name in [each for each in module._buffers if each.startswith("settled_")]:
        delattr(module, name)
