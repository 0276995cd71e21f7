"""The parameters of the stage `scenes`, as `params.yaml` gives them."""

from typing import Self

from pydantic import Field, model_validator

from manifests.typed import Settings


class SceneSettings(Settings):
    """The demo data set: how many scenes of what kind (`scenes` in params.yaml)."""

    seed: int = Field(0, ge=0, description="decides every scene")
    train: int = Field(2000, ge=1, description="scenes to train on")
    val: int = Field(200, ge=1, description="scenes to validate on")
    test: int = Field(500, ge=1, description="scenes to test on")
    size: int = Field(160, ge=64, le=1024, description="side of a picture in pixels")
    min_objects: int = Field(2, ge=1, description="fewest objects in a scene")
    max_objects: int = Field(6, ge=1, le=8, description="most objects in a scene")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_objects > self.max_objects:
            raise ValueError(f"min_objects ({self.min_objects}) must not be above max_objects ({self.max_objects})")
        return self
