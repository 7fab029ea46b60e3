"""What a network costs by counting alone: the same figures on any machine, whatever else it does."""

from functools import cache

import torch

from mst.config import ModelConfig
from mst.model import MST
from mst.model.flops import flops_of_parts


@cache
def counted(config: ModelConfig) -> dict[str, float]:
    """Return a network's operations on one image, and its parameters; nothing is computed.

    Args:
        config: of the network.
    """
    with torch.device("meta"):
        model = MST(config)
    parameters = sum(each.numel() for each in model.parameters())
    encode, click = flops_of_parts(model)
    return {
        "forward_flops": float(encode + click),
        "click_flops": float(click),
        "parameters": float(parameters),
    }
