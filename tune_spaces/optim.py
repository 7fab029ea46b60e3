"""Learning rate, how it falls towards the first blocks, and the average of the weights.

All of it can change in mid-training, as `--scheduler pbt` does.
"""

SPACE = {
    "optim.lr": {"loguniform": (1e-6, 3e-3)},  # the paper: 5e-6
    "optim.layer_decay": {"uniform": (0.6, 1)},
    "optim.ema": {"ordered": (0, 0.9, 0.99, 0.999)},
}
