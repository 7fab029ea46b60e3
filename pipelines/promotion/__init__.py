"""Whether a checkpoint is better than the champion: comparison, rules, and the version's card."""
