"""What a network knows of an image before any click on it."""

from typing import NamedTuple

from torch import Tensor

from mst.model.patch_embed import Scale


class Features(NamedTuple):
    """What the encoder, the ViT up to the block before which clicks enter, says of images."""

    pixels: Tensor
    """(B, 3, H, W), normalised as the ViT expects it."""
    tokens: tuple[Tensor, ...]
    """(B, L, C) each: after the blocks of `model.features`, and last after the encoder's last block.
    Empty where clicks enter before the first block."""


class Encoded(NamedTuple):
    """All that a click needs of images: a function of weights and pixels, of no click."""

    size: tuple[int, int]
    """Height and width in pixels."""
    pixels: Tensor | None = None
    """(B, 3, H, W), normalised; only where clicks enter before the first block."""
    base: Scale | None = None
    """The base tokens, of the late part's width; None where clicks enter before the first block."""
    scales: tuple[Scale, ...] = ()
    """The extra scales, after their first rapid update."""
    detail: Tensor | None = None
    """(B, channels, H / 4, W / 4), what the head sees of the image itself; None without `model.detail`."""
    likeness: Tensor | None = None
    """(B, L, C), the tokens by which `ClickContext` compares; only where no block follows the clicks."""
