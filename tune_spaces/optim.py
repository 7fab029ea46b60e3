"""Learning rate, how it falls towards the first blocks, and the average of the weights.

All of it can change in mid-training, as `--scheduler pbt` does.
"""

SPACE = {
    "optim.lr": {"loguniform": (1e-5, 3e-3)},
    "optim.layer_decay": {"uniform": (0.6, 1)},
    "optim.ema": {"choice": (0, 0.9, 0.99, 0.999)},
}
