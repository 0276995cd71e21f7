"""The parameters of a run: a base, its losses, and what reads them (`presets/` has the papers' values).

The schema of `base` and `losses` is made of the registries, other packages' parts included.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from manifests.typed import Settings
from train.bag import ConceptBagSettings
from train.bases import BASES
from train.losses import LOSSES
from train.precision import Precision
from train.words import TextSettings


class StreamSettings(Settings):
    """Training regions from WebDataset shards at addresses instead of the region store (`train.stream`)."""

    urls: tuple[str, ...] = Field(min_length=1, description="paths, http(s):// or s3://; {000000..000009} is expanded")
    window: int = Field(5000, ge=1, description="captions that are shuffled among each other")


class RunSettings(Settings):
    """One training run on one data set."""

    dataset: str
    labels: Literal["manifest", "teachers"] = Field(
        "manifest",
        description="which captions are whose; teachers: soft labels too, for csa and usa (params.yaml must say)",
    )
    seed: int = 0
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=2)
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    learning_rate: float = Field(2e-4, gt=0)
    encoder_rate: float = Field(1.0, gt=0, description="share of the learning rate that a text encoder in the loop has")
    decay_epochs: int = Field(10, ge=1, description="epochs after which the learning rate is multiplied by decay")
    decay: float = Field(0.1, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0, description="first steps, in which the learning rate rises linearly")
    gradient_clip: float = Field(2.0, gt=0)
    patience: int | None = Field(None, ge=1, description="epochs without a better R@sum after which the run ends")
    accumulate: int = Field(1, ge=1, description="chunks that a batch is encoded in; its negatives stay all of it")
    precision: Precision = Field("float32", description="of matrix products and cuDNN; weights and scores are float32")
    compile: bool = Field(False, description="compile encoders and losses with torch.compile")
    base: BASES.settings
    text: TextSettings
    losses: LOSSES.settings_by_name()
    bag: ConceptBagSettings | None = Field(None, description="a bag of concepts in the embedding")
    stream: StreamSettings | None = None

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if not self.losses:
            raise ValueError("a run without losses learns nothing: add one, for instance triplet")
        return self

    @model_validator(mode="after")
    def _every_loss_starts(self) -> Self:
        for name, loss in self.losses.items():
            if loss.start_epoch >= self.epochs:
                raise ValueError(
                    f"losses.{name}.start_epoch is {loss.start_epoch}, and the run's {self.epochs} epochs count from "
                    "0: it would never start; lower it, or leave the loss out"
                )
        return self

    @model_validator(mode="after")
    def _taught_by_a_teacher(self) -> Self:
        if "distillation" not in self.losses:
            return self
        if "alignment" not in self.losses:
            raise ValueError("losses.distillation learns from losses.alignment: add `alignment: {}`")
        if self.losses["distillation"].teacher == "frozen" and not self.losses["distillation"].start_epoch:
            raise ValueError("a frozen teacher learns before losses.distillation.start_epoch: set it to 1 or more")
        return self

    @model_validator(mode="after")
    def _contrast_has_heads(self) -> Self:
        contrast = self.losses.get("cusa_contrast")
        if contrast and contrast.reads == "heads" and "csa" not in self.losses:
            raise ValueError("losses.cusa_contrast reads csa's heads: add csa, or set `reads: embedding`")
        return self

    @model_validator(mode="after")
    def _losses_have_what_they_need(self) -> Self:
        needs = {name: LOSSES[name].needs for name, _ in self.losses.items()}
        named = [name for name, needed in needs.items() if "teachers" in needed]
        if (self.labels == "teachers") != bool(named):
            raise ValueError(
                "csa and usa need `labels: teachers`, and nothing else does: set both or neither"
                if not named
                else f"losses.{named[0]} needs `labels: teachers`"
            )
        for name, needed in needs.items():
            if "views" in needed and not BASES[self.base.name].has_views:
                raise ValueError(f"losses.{name} keeps an image's views apart, and base {self.base.name} has one")
        return self

    @model_validator(mode="after")
    def _shared_encoder_runs(self) -> Self:
        if BASES[self.base.name].runs_encoder and self.text.reads == "text_features":
            raise ValueError(
                f"base {self.base.name} reads regions and words with one encoder: set text.reads to tokens"
            )
        return self
