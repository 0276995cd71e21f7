"""The parameters of the evaluation and report stages in `params.yaml`: only what changes what they write."""

from typing import Literal

from pydantic import Field

from manifests.typed import Settings


class EvaluationSettings(Settings):
    """What `evaluate@R` reads: the split whose captions and images are searched."""

    split: Literal["train", "val", "test"] = "test"


class ReportSettings(Settings):
    """What `report` reads: how many captions of each data set are shown, and how many pictures found for each."""

    examples: int = Field(default=6, ge=0, le=30)
    retrieved: int = Field(default=5, ge=1, le=10)
