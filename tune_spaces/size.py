"""What a click costs and what it buys: resolution, windows, and MLPs in the fusion modules.

For `--objectives noc90 gflops`: operations are counted, and so need no quiet machine.
"""

SPACE = {
    "model.image_size": {"ordered": (224, 336, 448)},
    "model.window": {"choice": (0, 7, 14)},
    "model.fusion_mlp_ratio": {"ordered": (0, 2, 4)},
    "model.fusion_per_scale": {"choice": (False, True)},
}
