"""What answers say of models."""

from pydantic import BaseModel


class ModelInfo(BaseModel):
    """What made a mask."""

    name: str
    version: str
    digest: str
    """sha256 of the weights."""


class Rejected(BaseModel):
    """A version that an alias names and that is not served."""

    model: str
    """Its address in the registry."""
    reason: str
