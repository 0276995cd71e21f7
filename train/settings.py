"""The parameters of a run: a base, its losses, and SelfAlign on top or not (`presets/` has the paper's values).

Everything beside the base and its ranking loss is off until its key stands in `params.yaml`.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from extract.text.parts_of_speech import POS_NAMES
from manifests.typed import Settings, one_of

MOST_LAYERS = 1000  # a record of a checkpoint may say anything


class CaptionDecoderSettings(Settings):
    """VSRN's caption generation: a decoder must write the caption from the image's contextual regions."""

    weight: float = Field(1.0, gt=0)
    dim: int = Field(512, ge=1, description="hidden size of the decoder")


class _BaseSettings(Settings):
    """A base; `reads_boxes`: whether it looks at the regions' boxes, and so can't learn from a store without any."""

    reads_boxes: ClassVar[bool] = False


class VSRNSettings(_BaseSettings):
    """`train.models.vsrn`."""

    name: Literal["vsrn"]
    dim: int = Field(2048, ge=1, description="D, the joint dimension")
    graph_layers: int = Field(4, ge=0, le=MOST_LAYERS, description="layers of region reasoning")
    caption_decoder: CaptionDecoderSettings | None = None


class CameraSettings(_BaseSettings):
    """`train.models.camera`."""

    reads_boxes: ClassVar[bool] = True

    name: Literal["camera"]
    dim: int = Field(2048, ge=16, multiple_of=16, description="D, the joint dimension")
    heads: int = Field(64, ge=1, description="attention heads; they share D evenly")
    views: int = Field(12, ge=1, description="k, vectors of an image")
    dropout: float = Field(0.1, ge=0, lt=1)
    diversity: float = Field(0.01, ge=0, description="weight of the regulariser that keeps views apart")

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        _require_even_heads(self.dim, self.heads)
        return self


class VSEInfinitySettings(_BaseSettings):
    """`train.models.vse_infinity`."""

    name: Literal["vse_infinity"]
    dim: int = Field(1024, ge=2, multiple_of=2, description="D, the joint dimension")
    position_dim: int = Field(32, ge=2, multiple_of=2, description="size of the pooling operator's positions and GRU")


class TransformerSettings(_BaseSettings):
    """`train.models.transformer`: one encoder for regions and words. `text.encoder`, if any, takes its place."""

    reads_boxes: ClassVar[bool] = True

    name: Literal["transformer"]
    dim: int = Field(768, ge=2, description="D, the joint dimension, and the width of a new encoder")
    layers: int = Field(12, ge=1, le=MOST_LAYERS, description="of a new encoder")
    heads: int = Field(12, ge=1, description="of attention; they share D evenly")
    positions: int = Field(128, ge=1, description="words of the longest caption that a new encoder reads")
    head_layers: int = Field(2, ge=0, le=MOST_LAYERS, description="of the matching head, whose vector is searched with")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        _require_even_heads(self.dim, self.heads)
        return self


def _require_even_heads(dim: int, heads: int) -> None:
    if dim % heads:
        raise ValueError(f"{heads} heads can't share {dim} dimensions evenly")


BaseSettings = one_of("name", VSRNSettings, CameraSettings, VSEInfinitySettings, TransformerSettings)


class EncoderSettings(Settings):
    """A Hugging Face text encoder that is run, and may be tuned, in training (`train.models.words`)."""

    model: str = Field(min_length=1, description="folder or hub name; the tokens stage needs its tokenizer")
    revision: str | None = Field(None, description="commit, tag or branch of a hub name")
    tune: bool = Field(True, description="false: its weights stay; text_features@D then is much faster")


class TextSettings(Settings):
    """Where a base's words come from."""

    reads: Literal["tokens", "text_features"] = Field(
        description="tokens: word ids, learned embeddings; text_features: the cached states of a frozen encoder"
    )
    word_dim: int = Field(300, ge=1, description="length of a learned word embedding")
    encoder: EncoderSettings | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.encoder and self.reads == "text_features":
            raise ValueError("text_features are an encoder's cached states: leave encoder out, or set reads to tokens")
        return self

    @property
    def pieces(self) -> bool:
        """Whether the words are word pieces of a tokenizer."""
        return self.reads == "text_features" or self.encoder is not None


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
    epsilon: float = Field(0.05, ge=0.004)
    sinkhorn_iterations: int = Field(2, ge=1)
    start_epoch: int = Field(0, ge=0, description="the first epoch with this loss")
    frozen_epochs: int = Field(1, ge=0, description="its first epochs, in which the codebook isn't moved")
    both_directions: bool = Field(False, description="regions predict their words' entries as well")
    parts_of_speech: list[Literal[*POS_NAMES]] | None = Field(
        None, min_length=1, description="universal tags of the words that learn"
    )
    locals: Literal["projected", "contextual"] = Field("projected", description="before or after context")


class ContextSettings(Settings):
    """L_CRA (`train.selfalign.context`)."""

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.7, gt=0)
    num_negatives: int = Field(512, ge=1)


class WordRegionSettings(Settings):
    """InfoNCE on the all-pairs word-region score, in training only (`train.losses.alignment`); not in the paper."""

    weight: float = Field(1.0, gt=0)
    temperature: float = Field(0.05, gt=0)


class ConceptBagSettings(Settings):
    """A bag of concepts in the embedding (`train.selfalign.bag`); not in the paper."""

    num_concepts: int = Field(256, ge=1)
    temperature: float = Field(0.1, gt=0)
    codebook: bool = Field(True, description="false: the control, as many dimensions pooled alike without a codebook")


class SelfAlignSettings(Settings):
    """SelfAlign's modules; any may be left out."""

    concept: ConceptSettings | None = None
    context: ContextSettings | None = None
    word_region: WordRegionSettings | None = None
    bag: ConceptBagSettings | None = None


class AlignmentSettings(Settings):
    """ALADIN's teacher: triplets on the all-pairs word-region score (`train.losses.alignment`)."""

    weight: float = Field(1.0, gt=0)
    margin: float = Field(0.2, gt=0)
    all_negatives_epochs: int = Field(1, ge=0, description="first epochs on all negatives; hardest ones afterwards")
    locals: Literal["projected", "contextual"] = Field("projected", description="before or after the base's context")
    over_words: Literal["sum", "mean"] = Field("sum", description="the mean knows no length, which can stall the sum")


class DistillationSettings(Settings):
    """ALADIN's student: the teacher's scores of a batch, learned by the final embeddings (`train.losses`)."""

    weight: float = Field(1.0, gt=0)
    mode: Literal["listnet", "mse", "ordinal"] = "listnet"
    scale: float = Field(6.0, gt=0, description="listnet: what the student's scores are multiplied by")
    start_epoch: int = Field(0, ge=0, description="the first epoch with this loss")
    teacher: Literal["joint", "frozen"] = Field(
        "joint", description="frozen: from start_epoch on, nothing that makes the teacher's scores changes"
    )


class AladinSettings(Settings):
    """ALADIN: align, then distil."""

    alignment: AlignmentSettings = AlignmentSettings()
    distillation: DistillationSettings | None = None

    @model_validator(mode="after")
    def _taught_before_frozen(self) -> Self:
        if self.distillation and self.distillation.teacher == "frozen" and not self.distillation.start_epoch:
            raise ValueError("a frozen teacher learns before distillation.start_epoch: set it to 1 or more")
        return self


class LearntTemperatureSettings(Settings):
    """A learnt temperature: it starts at `temperature` and stays within `bounds`."""

    temperature: float = Field(gt=0)
    bounds: tuple[PositiveFloat, PositiveFloat]

    @model_validator(mode="after")
    def _starts_within_bounds(self) -> Self:
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"bounds are [{low:g}, {high:g}]: the first must be below the second")
        if not low <= self.temperature <= high:
            raise ValueError(f"temperature {self.temperature:g} must lie within bounds, [{low:g}, {high:g}]")
        return self


class CusaContrastSettings(LearntTemperatureSettings):
    """CUSA's contrastive term."""

    weight: float = Field(1.0, ge=0)
    temperature: float = Field(0.05, gt=0)
    bounds: tuple[PositiveFloat, PositiveFloat] = (0.01, 0.10)


class CrossModalSettings(LearntTemperatureSettings):
    """CUSA's CSA: the final scores learn the teachers' similarities."""

    weight: float = Field(0.1, ge=0)
    temperature: float = Field(0.45, gt=0)
    bounds: tuple[PositiveFloat, PositiveFloat] = (0.10, 0.99)
    teacher_temperature: float = Field(1.0, gt=0)


class UniModalSettings(CrossModalSettings):
    """CUSA's USA: the similarities within each modality learn the teachers'."""

    weight: float = Field(0.5, ge=0)


class CusaSettings(Settings):
    """CUSA (`train.models.cusa`): soft labels from the data set's teachers. A term of weight 0 isn't computed."""

    contrast: CusaContrastSettings = CusaContrastSettings()
    cross_modal: CrossModalSettings = CrossModalSettings()
    uni_modal: UniModalSettings = UniModalSettings()


class StreamSettings(Settings):
    """Training regions from WebDataset shards at addresses instead of the region store (`train.stream`)."""

    urls: tuple[str, ...] = Field(min_length=1, description="paths, http(s):// or s3://; {000000..000009} is expanded")
    window: int = Field(5000, ge=1, description="captions that are shuffled among each other")


class RunSettings(Settings):
    """One training run on one data set."""

    dataset: str
    labels: Literal["manifest", "teachers"] = Field(
        "manifest",
        description="which captions are whose; teachers: cusa's soft labels too (params.yaml must say)",
    )
    seed: int = 0
    epochs: int = Field(ge=1)
    batch_size: int = Field(128, ge=2)
    learning_rate: float = Field(2e-4, gt=0)
    decay_epochs: int = Field(10, ge=1, description="epochs after which the learning rate is multiplied by decay")
    decay: float = Field(0.1, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0, description="first steps, in which the learning rate rises linearly")
    gradient_clip: float = Field(2.0, gt=0)
    patience: int | None = Field(None, ge=1, description="epochs without a better R@sum after which the run ends")
    accumulate: int = Field(1, ge=1, description="chunks that a batch is encoded in; its negatives stay all of it")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products; weights are float32")
    compile: bool = Field(False, description="compile the encoders with torch.compile")
    base: BaseSettings
    text: TextSettings
    triplet: TripletSettings
    contrast: ContrastSettings | None = None
    selfalign: SelfAlignSettings | None = None
    aladin: AladinSettings | None = None
    cusa: CusaSettings | None = None
    stream: StreamSettings | None = None

    @model_validator(mode="after")
    def _every_loss_starts(self) -> Self:
        starts = {
            "selfalign.concept": self.selfalign and self.selfalign.concept,
            "aladin.distillation": self.aladin and self.aladin.distillation,
        }
        for name, loss in starts.items():
            if loss and loss.start_epoch >= self.epochs:
                raise ValueError(
                    f"{name}.start_epoch is {loss.start_epoch}, and the run's {self.epochs} epochs count from 0: it "
                    "would never start; lower it, or leave the loss out"
                )
        return self

    @model_validator(mode="after")
    def _shared_encoder_runs(self) -> Self:
        if isinstance(self.base, TransformerSettings) and self.text.reads == "text_features":
            raise ValueError("base transformer reads regions and words with one encoder: set text.reads to tokens")
        return self

    @model_validator(mode="after")
    def _soft_labels_have_a_use(self) -> Self:
        if (self.labels == "teachers") != (self.cusa is not None):
            raise ValueError("cusa needs `labels: teachers`, and nothing else does: set both or neither")
        return self
