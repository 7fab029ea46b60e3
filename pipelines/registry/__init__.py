"""The registered model in MLflow: its versions, who may change them, and its package."""
