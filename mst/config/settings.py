"""What all settings have in common, and the ranges of their numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Range = tuple[Positive, Positive]


class Settings(BaseModel):
    """Base of all settings: frozen, closed to unknown keys, documented by the lines under each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
