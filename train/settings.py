"""The parameters of a run: a base, its losses, and SelfAlign on top or not (METHODS.md has the paper's values)."""

from typing import Literal

from pydantic import Field

from manifests.typed import Settings


class BaseSettings(Settings):
    """The independent-embedding base (`train.models`)."""

    name: Literal["vsrn"]
    dim: int = Field(ge=1, description="D, the joint dimension")
    word_dim: int = Field(300, ge=1, description="length of a word embedding")
    graph_layers: int = Field(4, ge=0, description="layers of region reasoning")


class TripletSettings(Settings):
    """The base ranking loss."""

    margin: float = Field(0.2, gt=0)
    all_negatives_epochs: int = Field(1, ge=0, description="first epochs on all negatives; hardest ones afterwards")


class ContrastSettings(Settings):
    """InfoNCE on the final scores: the control that a gain of SelfAlign is to be held against."""

    weight: float = Field(gt=0)
    temperature: float = Field(0.1, gt=0)


class ConceptSettings(Settings):
    """L_LCA (`train.selfalign.concept`)."""

    weight: float = Field(1.0, gt=0)
    num_concepts: int = Field(1024, ge=1, description="K, the codebook's size")
    temperature: float = Field(0.1, gt=0)
    epsilon: float = Field(0.05, gt=0)
    sinkhorn_iterations: int = Field(2, ge=1)
    frozen_epochs: int = Field(1, ge=0, description="first epochs in which the codebook isn't moved")


class ContextSettings(Settings):
    """L_CRA (`train.selfalign.context`)."""

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.7, gt=0)
    num_negatives: int = Field(512, ge=1)


class SelfAlignSettings(Settings):
    """Both modules; either may be left out."""

    concept: ConceptSettings | None = None
    context: ContextSettings | None = None


class StreamSettings(Settings):
    """Training regions from WebDataset shards at addresses instead of the region store (`train.stream`)."""

    urls: tuple[str, ...] = Field(min_length=1, description="paths, http(s):// or s3://; {000000..000009} is expanded")
    window: int = Field(5000, ge=1, description="captions that are shuffled among each other")


class RunSettings(Settings):
    """One training run on one data set."""

    dataset: str
    seed: int = 0
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(2e-4, gt=0)
    decay_epochs: int = Field(10, ge=1, description="epochs after which the learning rate is multiplied by decay")
    decay: float = Field(0.1, gt=0, le=1)
    gradient_clip: float = Field(2.0, gt=0)
    base: BaseSettings
    triplet: TripletSettings
    contrast: ContrastSettings | None = None
    selfalign: SelfAlignSettings | None = None
    stream: StreamSettings | None = None
