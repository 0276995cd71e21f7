"""The typed parameters of floor 1: what the demo's scenes are, and where a data set is."""

from pathlib import Path
from typing import Literal, Self

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


class DatasetSource(Settings):
    """Where a data set's pictures and captions are, and how it is split (`datasets.NAME.source` in params.yaml)."""

    format: Literal["karpathy", "folder"] = Field(description="karpathy: Karpathy's JSON; folder: CSV, TSV or JSONL")
    images: Path = Field(description="the image root")
    captions: Path = Field(description="the captions file")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="part to validate on, if the file has no splits")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="part to test on, if the file has no splits")

    duplicates: Literal["refuse", "allow"] = Field("refuse", description="the same bytes in two splits")

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must be below 1")
        return self
