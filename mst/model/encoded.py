"""What a network knows of an image before any click on it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
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

    def tensors(self) -> list[Tensor | None]:
        """Return what differs from image to image, in the order that `with_tensors` takes."""
        base = None if self.base is None else self.base.tokens
        return [self.pixels, base, self.detail, self.likeness, *(scale.tokens for scale in self.scales)]

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "Encoded":
        """Return the same of other images of this size."""
        pixels, base, detail, likeness, *tokens = tensors
        return Encoded(
            self.size,
            pixels,
            None if self.base is None or base is None else self.base._replace(tokens=base),
            tuple(
                scale._replace(tokens=each)
                for scale, each in zip(self.scales, tokens, strict=True)
                if each is not None
            ),
            detail,
            likeness,
        )

    def split(self) -> list["Encoded"]:
        """Return each image on its own, without holding the others' memory."""
        whole = self.tensors()
        number = next(each.shape[0] for each in whole if each is not None)
        return [
            self.with_tensors([None if each is None else each[at : at + 1].clone() for each in whole])
            for at in range(number)
        ]

    def nbytes(self) -> int:
        """Bytes of what differs from image to image."""
        return sum(each.nbytes for each in self.tensors() if each is not None)


def join(images: Sequence[Encoded]) -> Encoded:
    """Return encoded images of one size as one batch, in their order."""
    if len(images) == 1:
        return images[0]
    columns = zip(*(each.tensors() for each in images), strict=True)
    return images[0].with_tensors(
        [
            torch.cat(there) if (there := [each for each in column if each is not None]) else None
            for column in columns
        ]
    )
