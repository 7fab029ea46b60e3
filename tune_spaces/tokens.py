"""Which tokens guide the base tokens: how many, of which patches, how often, and of which scales."""

SPACE = {
    "model.k_ratio": {"ordered": (0.04, 1 / 12, 1 / 6, 1 / 3)},
    "model.patch_sizes": {"choice": ("8", "28", "8,28", "8,56", "28,56")},
    "model.fusion_stages": {"ordered": (1, 2, 3)},
    "model.scale_choice": {"choice": ("best", "all")},
}
