"""Settings of a server: `serve run serve.app:build key=value ...` or `python -m serve --key value ...`."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PROJECT = Path(__file__).resolve().parent.parent


class ServeSettings(BaseModel):
    """How a server is set up; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = "models:/mst@champion"
    """The registered model to serve, or a checkpoint folder."""
    tracking_uri: str = Field(default=f"sqlite:///{_PROJECT / 'mlruns' / 'mlflow.db'}")
    """The MLflow registry; the variable MLFLOW_TRACKING_URI comes first."""
    image_store: str = str(_PROJECT / "out" / "serve" / "images")
    """Folder in which images are kept under their sha256."""
    max_pixels: int = Field(default=40_000_000, ge=1)
    """Most pixels of an image; larger ones are refused before they are decoded."""
    max_bytes: int = Field(default=32 * 2**20, ge=1)
    """Most bytes of a request's body."""
    cache_bytes: int = Field(default=512 * 2**20, ge=1)
    """Most memory for decoded images, and as much again for predictions, of each HTTP replica."""
    min_replicas: int = Field(default=1, ge=1)
    """Model replicas that are always there."""
    max_replicas: int = Field(default=1, ge=1)
    """Model replicas under load."""
    cpus_per_replica: float = Field(default=1.0, ge=0)
    """Cores for each model replica."""
    gpus_per_replica: float = Field(default=0.0, ge=0)
    """GPUs for each model replica, or the share of one."""
    max_batch: int = Field(default=8, ge=1)
    """Most clicks, of any users, in one forward."""

    @model_validator(mode="after")
    def _replicas_fit(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} exceeds max_replicas {self.max_replicas}")
        return self
