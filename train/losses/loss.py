"""A loss: one weighted term of a run's loss, of a batch of matching pairs that may come from many processes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from manifests.typed import Settings
from train.batches import TeacherBatch, WordBatch
from train.encoding import READABLE, Encoded, Encoding, similarity

Side = Literal["images", "captions"]


class LossSettings(Settings):
    """The keys that every loss has."""

    weight: float = Field(1.0, gt=0)
    start_epoch: int = Field(0, ge=0, description="the first epoch with this loss")


@dataclass(frozen=True, slots=True)
class Shape:
    """What losses are built for.

    dim : D of the locals and of the base's own embedding; embedding : of the final one.
    vocabulary_size : number of words or word pieces; boundary_ids : which are a caption's start and end; word_dim : of
        a learned word embedding.
    """

    dim: int
    embedding: int
    vocabulary_size: int
    word_dim: int
    boundary_ids: tuple[int | None, int | None]


@dataclass(frozen=True)
class Step:
    """B matching pairs, as a loss reads them.

    same : bool ``[B, B]``, true where two pairs are of one image, the diagonal included.
    pos : uint8 ``[B, T]``, parts of speech of the captions' words.
    each : the result of `Loss.each`, by the loss's name.
    teachers : vectors of uni-modal teachers for the pairs, for losses that need them.
    """

    images: Encoding
    captions: Encoding
    same: Tensor
    pos: Tensor
    each: Mapping[str, Tensor]
    teachers: TeacherBatch | None
    epoch: int

    @cached_property
    def scores(self) -> Tensor:
        """``[B, B]``: every image with every caption."""
        return similarity(self.images, self.captions)


@dataclass(frozen=True, slots=True)
class Extension:
    """What a loss adds to an embedding: ``[B, S]``, and tensors of B rows that it reads again in its own step."""

    embedding: Tensor
    parts: Mapping[str, Tensor]


class Loss(nn.Module):
    """A term of the loss.

    Parameters
    ----------
    settings : of type `Settings`.
    shape : of the model.
    others : the run's losses whose names come before, alphabetically.

    Attributes
    ----------
    reads : fields of the encodings that `forward` reads (`READABLE`), beside masks and its own parts: what processes
        that train together tell each other. By default all.
    needs : what it reads beside the encodings: ``teachers`` (soft labels), ``views`` (the weights of an image's views).
    judged_by : the figure of the validation that follows from this loss.
    training_only : whether it has parameters that nothing but training reads.
    published : beginnings of the published names of its parameters -> beginnings of ours; those with ``{side}`` are in
        both encoders.
    end_epoch : from then on the term isn't there; None: it stays.
    restart_epoch : then training begins anew from the best weights so far, with a new optimizer; None: never.
    """

    Settings: ClassVar[type[LossSettings]] = LossSettings
    needs: ClassVar[frozenset[str]] = frozenset()
    judged_by: ClassVar[str] = "rsum"
    training_only: ClassVar[bool] = False
    published: ClassVar[Mapping[str, str]] = {}
    name: ClassVar[str]
    version: ClassVar[int]

    end_epoch: int | None = None
    restart_epoch: int | None = None

    def __init__(self, settings: LossSettings, shape: Shape, others: "Mapping[str, Loss]"):
        super().__init__()
        self.options = settings

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(READABLE)

    @classmethod
    def added_dims(cls, settings: LossSettings, dim: int) -> int:
        """S, by how much this loss lengthens an embedding of D."""
        return 0

    def extend(self, side: Side, encoded: Encoded) -> Extension | None:
        """What is added to the embedding of B images or captions, for a loss that trains a part of it."""
        return None

    def each(self, images: Encoding, captions: Encoding, words: WordBatch) -> Tensor | None:
        """A number for each pair, ``[B]``, made where the pair is encoded: for what needs much memory."""
        return None

    def forward(self, step: Step) -> Tensor:
        """The term without its weight, a scalar."""
        raise NotImplementedError

    def is_on(self, epoch: int) -> bool:
        return self.options.start_epoch <= epoch and (self.end_epoch is None or epoch < self.end_epoch)

    def frozen(self, epoch: int, model: nn.Module) -> Iterable[nn.Parameter]:
        """Parameters that `epoch` doesn't move."""
        return ()
