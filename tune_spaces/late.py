"""The part after all blocks of the ViT, where an image is encoded once: its width, its blocks, what it sees.

For `--objectives noc90 gflops_per_click`.
"""

BASE = {"model.click_entry": 12, "model.fusion_stages": 1}

SPACE = {
    "model.late_width": {"ordered": (128, 192, 256, 384)},
    "model.late_blocks": {"ordered": (1, 2, 4)},
    "model.features": {"choice": ("", "6", "3,6,9")},
}
