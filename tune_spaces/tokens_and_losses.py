"""How many tokens, of which sizes, and how much the losses weigh."""

SPACE: dict[str, tuple[str, ...]] = {
    "model.k_ratio": ("0.04", "0.0833", "0.1667", "0.3333"),
    "model.patch_sizes": ("8,28", "8,56", "8", "28"),
    "loss.contrastive": ("0", "0.03", "0.1", "0.3", "1"),
    "loss.alpha": ("0.4", "0.5", "0.6"),
}
