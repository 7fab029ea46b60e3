"""The network, from pixels and clicks to logits.

patch_embed   one kernel that makes tokens of several scales
attention     multi-head attention and the transformer block
tokens        reference kernel, similarity, top-k, choice of scale (MST eq. 2-5)
fusion        the module in which the scales guide the base tokens
click_context how tokens relate to the clicks, told to the head (an addition to the paper)
detail        the image at a quarter of its size, shown to the head (an addition to the paper)
neck, head    SimpleFPN and the all-MLP head
mst           the whole
weights       initial weights from elsewhere
"""

from mst.model.mst import MST, Output, upsample

__all__ = ["MST", "Output", "upsample"]
