"""The network, from pixels and clicks to logits.

patch_embed   one kernel that makes tokens of several scales
attention     multi-head attention and the transformer block
tokens        reference kernel, similarity, top-k, choice of scale (MST eq. 2-5)
fusion        the module in which the scales guide the base tokens
click_context how tokens relate to the clicks, told to the head (an addition to the paper)
detail        the image at a quarter of its size, shown to the head (an addition to the paper)
neck, head    SimpleFPN and the all-MLP head
narrowing     from the ViT's width to that of a late part
encoded       what is known of an image before any click
mst           the whole: encode an image, click on it
weights       initial weights from elsewhere
"""

from mst.model.encoded import Encoded, Features
from mst.model.mst import MST, Output, upsample

__all__ = ["MST", "Encoded", "Features", "Output", "upsample"]
