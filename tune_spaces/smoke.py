"""A few points, for the demo and the tests: they show how a sweep works, and find nothing."""

SPACE = {
    "model.k_ratio": {"choice": (0.04, 1 / 6)},
    "loss.contrastive": {"choice": (0, 0.1, 1)},
    "optim.lr": {"loguniform": (2e-4, 2e-3)},
}
