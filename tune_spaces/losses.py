"""How much the losses weigh, and the form of the focal loss."""

SPACE = {
    "loss.contrastive": {"ordered": (0, 0.03, 0.1, 0.3, 1)},
    "loss.alpha": {"uniform": (0.35, 0.65)},
    "loss.gamma": {"uniform": (0.5, 4)},
    "loss.normalized": {"choice": (True, False)},
}
