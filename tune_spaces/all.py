"""Tokens, losses and optimizer together; worth some fifty trials."""

from tune_spaces import losses, optim, tokens

SPACE = {**tokens.SPACE, **losses.SPACE, **optim.SPACE}
