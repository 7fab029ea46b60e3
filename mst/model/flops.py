"""What a forward costs, and what a card could do: together, how well the card is used (MFU)."""

from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mst.model.mst import MST
from mst.model.patch_embed import IMAGE_CHANNELS

# NVIDIA's data sheets and the white papers of GA102 and AD102. Where a sheet gives the figure with sparsity
# (H100, H200, L4) it is halved; on GeForce cards it is that with sums in fp32, as training has them.
PEAK_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989e12,  # SXM
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989e12,  # SXM
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "Tesla V100-SXM2-16GB": 125e12,  # V100 has no bf16: these are fp16
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla V100-PCIE-16GB": 112e12,
    "Tesla V100-PCIE-32GB": 112e12,
}
"""Dense bf16 operations a second, by the names that `torch.cuda.get_device_name` gives."""


def peak_flops(device_name: str) -> float | None:
    """Return the most floating point operations a second that a card can do in dense bf16.

    Names must be equal: a laptop's card, or a part of one (MIG), does less than the one it is named after.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.

    Returns:
        FLOP/s, or None for a card that is not in `PEAK_FLOPS`.
    """
    return PEAK_FLOPS.get(device_name)


def forward_flops(model: MST, batch: int = 1, side: int | None = None) -> int:
    """Count the floating point operations of a forward: two for each multiply-add of matrices.

    Norms, activations and resizing are not counted, as is usual. What runs is not the model but its twin of
    shapes without values: nothing changes in the model, on its device or in torch's random numbers.

    Args:
        model: the network.
        batch: B, images at once, with one click each.
        side: of the image in pixels; the model's `config.image_size` where none is given.
    """
    return sum(flops_of_parts(model, batch, side))


class PartsFlops(NamedTuple):
    """Operations of the parts of a forward."""

    encode: int
    """What is computed once for all clicks on an image; 0 where clicks enter before the first block."""
    click: int
    """What each click costs."""


def flops_of_parts(model: MST, batch: int = 1, side: int | None = None) -> PartsFlops:
    """Count the operations of an encoding, and those of a click on it; arguments as of `forward_flops`."""
    side = side or model.config.image_size
    with torch.device("meta"):
        twin = MST(model.config)
        image, prev_mask = torch.zeros(batch, IMAGE_CHANNELS, side, side), torch.zeros(batch, 1, side, side)
        clicks = torch.zeros(batch, 1, 3)
    # Fused attention has kernels that torch's counter does not know; the plain one is two matrix products.
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415 - it imports Triton: seconds

    counts = []
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            encoded = twin.encode(image)
        counts.append(int(counter.get_total_flops()))
        with FlopCounterMode(display=False) as counter:
            twin.click(encoded, clicks, prev_mask)
        counts.append(int(counter.get_total_flops()))
    return PartsFlops(*counts)
