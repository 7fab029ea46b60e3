"""The model in its process: versions, batches of clicks, and the registry that names them."""
