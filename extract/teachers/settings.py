"""The parameters of the teachers stage, as they stand in `params.yaml`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from manifests.opening import MAX_PIXELS, PILLOWS_LIMIT
from manifests.typed import Settings

REGIONS_MEAN, LSA = "regions-mean", "lsa"


class ImageTeacherSettings(Settings):
    """Who finds images alike."""

    model: str = Field(
        min_length=1,
        description=f"{REGIONS_MEAN} (built in), or folder or hub name of a vision model of transformers or timm; "
        "nothing is fetched",
    )
    reads: Literal["regions", "manifest"] = Field(
        description=f"regions: the region store, for {REGIONS_MEAN}; manifest: the pictures that it lists, for others"
    )
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub name")
    pooling: Literal["pooler", "cls", "mean"] = Field(
        default="pooler", description="a vision model's own pooled output, its first state, or the mean of its states"
    )

    @model_validator(mode="after")
    def _reads_what_the_teacher_needs(self) -> Self:
        wanted = "regions" if self.model == REGIONS_MEAN else "manifest"
        if self.reads != wanted:
            raise ValueError(f"the teacher {self.model} reads {wanted}: set reads to that")
        return self


class CaptionTeacherSettings(Settings):
    """Who finds captions alike."""

    model: str = Field(
        min_length=1,
        description=f"{LSA} (built in), or folder or hub name of a sentence-transformers model or of a text encoder; "
        "nothing is fetched",
    )
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub name")
    pooling: Literal["mean", "cls"] | None = Field(
        default=None,
        description="of an encoder's states; by default what a sentence-transformers model says, else mean",
    )
    plain: bool = Field(
        default=False, description="an encoder reads captions in lower case, without punctuation, as CUSA's does"
    )
    dim: int = Field(default=128, ge=1, description=f"numbers a caption of {LSA}; an encoder has its own width")


class TeacherSettings(Settings):
    """What decides a data set's teachers."""

    images: ImageTeacherSettings
    captions: CaptionTeacherSettings
    unreadable: Literal["stop", "skip"] = Field(
        default="stop", description="at a picture that can't be decoded; training refuses a skipped one with regions"
    )
    max_pixels: int = Field(
        default=MAX_PIXELS, ge=1, le=PILLOWS_LIMIT, description="a picture of more, by its header, can't be decoded"
    )
    items_per_shard: int = Field(default=16384, ge=1)
