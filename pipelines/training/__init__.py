"""Training on a cluster: the workers, their progress, and what MLflow is told."""
