"""The parameters of the region and pack stages and of the demo detector's training, as `params.yaml` gives them."""

from typing import Literal

from pydantic import Field, model_validator

from manifests.settings import Settings


class DetectorSettings(Settings):
    """Which network finds the regions, and the size at which it sees a picture."""

    name: Literal["demo"] = Field(description="a detector of extract/detectors")
    weights: str = Field(description="path of its weights")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the weights file")
    shortest: int = Field(160, ge=8, description="pixels of the shorter side after resizing")
    longest: int = Field(256, ge=8, description="bound on the longer side, in pixels")


class SelectionSettings(Settings):
    """Which proposals become regions (`extract.selection`)."""

    rule: Literal["bottom_up"] = "bottom_up"
    min_boxes: int = Field(ge=1)
    max_boxes: int = Field(ge=1)
    nms_threshold: float = Field(0.3, gt=0, le=1)
    score_threshold: float = Field(0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> "SelectionSettings":
        if self.min_boxes > self.max_boxes:
            raise ValueError(f"min_boxes {self.min_boxes} is above max_boxes {self.max_boxes}")
        return self


class RegionSettings(Settings):
    """The region stage of one data set."""

    detector: DetectorSettings
    selection: SelectionSettings
    unreadable: Literal["stop", "skip"] = Field("stop", description="what a picture that can't be decoded does")
    images_per_shard: int = Field(1024, ge=1)


class PackSettings(Settings):
    """The pack stage of one data set."""

    images_per_shard: int = Field(1000, ge=1)


class DetectorTrainingSettings(Settings):
    """How the demo's detector is trained; `seed` must differ from the scenes' seed."""

    seed: int = Field(ge=0)
    iterations: int = Field(750, ge=1)
    batch_size: int = Field(16, ge=1, description="scenes a step")
    learning_rate: float = Field(2e-3, gt=0, description="the peak of a one-cycle schedule")
