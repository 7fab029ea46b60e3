"""Questions about quality, each a command: they need photos, or a model that was trained on them."""
