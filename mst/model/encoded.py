"""What a network knows of an image before any click on it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
    weights: str | None = None
    """Names the weights that it was encoded by; None where these may change (`MST.settle`)."""

    def tensors(self) -> dict[str, Tensor]:
        """Return what differs from image to image by name, as `with_tensors` takes it."""
        mine = {
            "pixels": self.pixels,
            "base": None if self.base is None else self.base.tokens,
            **{f"scale_{each.patch_size}": each.tokens for each in self.scales},
            "detail": self.detail,
            "likeness": self.likeness,
        }
        return {name: tensor for name, tensor in mine.items() if tensor is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Encoded":
        """Return the same of other images of this size."""
        return Encoded(
            self.size,
            tensors.get("pixels"),
            None if self.base is None else self.base._replace(tokens=tensors["base"]),
            tuple(each._replace(tokens=tensors[f"scale_{each.patch_size}"]) for each in self.scales),
            tensors.get("detail"),
            tensors.get("likeness"),
            self.weights,
        )

    def split(self) -> list["Encoded"]:
        """Return each image on its own, without holding the others' memory."""
        whole = self.tensors()
        number = next(iter(whole.values())).shape[0]
        return [
            self.with_tensors({name: each[at : at + 1].clone() for name, each in whole.items()})
            for at in range(number)
        ]

    def nbytes(self) -> int:
        """Bytes of what differs from image to image."""
        return sum(each.nbytes for each in self.tensors().values())


def join(images: Sequence[Encoded]) -> Encoded:
    """Return encoded images of one size as one batch, in their order."""
    if len(images) == 1:
        return images[0]
    each = [image.tensors() for image in images]
    return images[0].with_tensors({name: torch.cat([one[name] for one in each]) for name in each[0]})


def digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return a name for weights: the same for the same, another for others."""
    found = hashlib.sha256()
    for name, weight in sorted(parameters, key=lambda each: each[0]):
        found.update(name.encode())
        found.update(weight.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()
