"""The parameters of the evaluation and report stages in `params.yaml`: only what changes what they write."""

from typing import Literal

from pydantic import Field

from eval.metrics import METRICS
from manifests.typed import Settings

_DEFAULT_METRICS = ("rouge_l", "unimodal", "eccv")


class EvaluationSettings(Settings):
    """What `evaluate@R` and `ensemble@E` read: the split whose captions and images are searched, and how."""

    split: Literal["train", "val", "test"] = "test"
    folds: int = Field(default=1, ge=1, description="parts whose mean recalls are reported too; COCO 1K: 5")
    rerank: int = Field(default=50, ge=1, description="candidates that ALADIN's teacher puts in order once more")
    metrics: METRICS.settings_by_name(_DEFAULT_METRICS) = Field(
        default={}, validate_default=True, description="beside the recalls: of each the keys; null turns one off"
    )


class ReportSettings(Settings):
    """What `report` reads: how many captions of each data set are shown, and how many pictures found for each."""

    examples: int = Field(default=6, ge=0, le=30)
    retrieved: int = Field(default=5, ge=1, le=10)
