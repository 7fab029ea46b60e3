"""Training samples: which are drawn, and what is done to them."""
