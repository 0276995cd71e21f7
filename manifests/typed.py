"""The base of every floor's typed parameters."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section of `params.yaml`: typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
