"""What a device can do."""

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies bf16 in hardware; a CPU that does not is several times slower in it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
