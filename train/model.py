"""The whole model: a base, what its losses and the concept bag add to its embedding, and the losses of a step.

Nothing crosses modalities when an image or a caption is encoded; a score is a dot product (of the best of a few views).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from extract.text.vocabulary import BOUNDARY_IDS
from train.bag import ConceptBag
from train.bases import BASES
from train.batches import RegionBatch, TeacherBatch, WordBatch
from train.encoding import Encoded, Encoding
from train.losses import LOSSES
from train.losses.loss import Loss, Shape, Side, Step
from train.settings import RunSettings
from train.words import CachedStates, Transformer, Words, words_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(
    settings: RunSettings,
    feature_dim: int,
    vocabulary_size: int,
    *,
    text_dim: int | None = None,
    boundary_ids: tuple[int | None, int | None] = BOUNDARY_IDS,
    encoder: "PreTrainedModel | None" = None,
) -> "RetrievalModel":
    """A new model of a data set (`RetrievalData` has most of this).

    Parameters
    ----------
    feature_dim : of the region features.
    vocabulary_size, boundary_ids : how many ids the words or word pieces have, and which are a caption's start and end.
    text_dim : of the cached text features, where the run reads them.
    encoder : in the place of the one that ``settings.text.encoder`` names: nothing is looked for then.

    Raises
    ------
    InputError : the encoder isn't on this machine or doesn't fit, or the text features aren't there.
    """
    words = words_of(settings.text, vocabulary_size, text_dim, encoder)
    return RetrievalModel(settings, feature_dim, vocabulary_size, words, boundary_ids)


@dataclass(frozen=True, slots=True)
class Pairs:
    """B matching pairs, encoded: what the losses are made of. Every tensor has one row a pair.

    pos uint8 ``[B, T]`` : parts of speech of the captions' words.
    each : a number a pair of the losses that make one (`Loss.each`), by name.
    """

    images: Encoding
    captions: Encoding
    pos: Tensor
    each: dict[str, Tensor]

    def only(self, fields: Collection[str]) -> Self:
        """The same with the fields of the encodings alone that are named (`Encoding.only`)."""
        return replace(self, images=self.images.only(fields), captions=self.captions.only(fields))


class RetrievalModel(nn.Module):
    """A base with its losses.

    The final embeddings are the base's own, followed by each loss's addition (`Loss.extend`), in the order of their
    names. The concept bag, if any, comes last.
    """

    def __init__(
        self,
        settings: RunSettings,
        feature_dim: int,
        vocabulary_size: int,
        words: Words,
        boundary_ids: tuple[int | None, int | None],
    ):
        super().__init__()
        self.settings, self.boundary_ids, self._feature_dim = settings, boundary_ids, feature_dim
        dim, chosen = settings.base.dim, sorted(settings.losses.items())
        self.base = BASES.find(settings.base.name)(settings.base, feature_dim, words)
        self.bag = ConceptBag(dim, settings.bag) if settings.bag else None
        added = sum(LOSSES.find(name).added_dims(options, dim) for name, options in chosen)
        embedding = dim + added + (settings.bag.num_concepts if settings.bag else 0)
        shape = Shape(dim, embedding, vocabulary_size, settings.text.word_dim, boundary_ids)
        self.losses = nn.ModuleDict()
        for name, options in chosen:
            self.losses[name] = LOSSES.find(name)(options, shape, self.losses)

    @property
    def words(self) -> Words:
        return self.base.words

    @property
    def alignment(self) -> Loss | None:
        """ALADIN's teacher, where the run has one: it ranks by scores of its own."""
        return dict(self.losses).get("alignment")

    @property
    def text_record(self) -> dict[str, Any]:
        """What `build_model` needs of the text side beside the settings, as JSON; the encoder as its configuration."""
        cached, encoder = isinstance(self.words, CachedStates), isinstance(self.words, Transformer)
        return {
            "text_dim": self.words.width if cached else None,
            "marks": list(self.boundary_ids),
            "encoder": self.words.config if encoder else None,
        }

    def encode_images(self, batch: RegionBatch) -> Encoding:
        """Encode B images."""
        return self._encoding("images", self.base.encode_images(batch.widened()))

    def encode_locals(self, batch: RegionBatch) -> Tensor:
        """The locals ``[B, R, D]`` of B images alone, which often cost a small part of their encoding."""
        return self.base.encode_locals(batch.widened())

    def encode_captions(self, batch: WordBatch) -> Encoding:
        """Encode B captions."""
        return self._encoding("captions", self.base.encode_captions(batch))

    def within(self, side: Side, vectors: Tensor) -> Tensor:
        """What images, or captions, are compared with each other by, of `Encoding.one_vector` ``[B, D + S]``."""
        return self.losses["usa"].within(side, vectors) if "usa" in self.losses else vectors

    def compile_parts(self) -> None:
        """Compile both encoders with their losses' extensions, and the losses.

        Hugging Face's models stay as they are: they change their own methods while they run.
        """
        torch._dynamo.config.recompile_limit = 64  # sides, modes and sizes are variants of the same functions
        for module in self.modules():
            if type(module).__module__.startswith("transformers."):
                module.forward = torch.compiler.disable(module.forward)
        self.encode_images = torch.compile(self.encode_images)
        self.encode_captions = torch.compile(self.encode_captions)
        for loss in self.losses.values():
            loss.forward = torch.compile(loss.forward)

    def forward(self, regions: RegionBatch, words: WordBatch) -> Pairs:
        """Encode B matching pairs for `terms`; the only part that has a batch's size in memory many times over."""
        if self.training:
            regions, words = self.base.augmented(regions, words)
        images, captions = self.encode_images(regions), self.encode_captions(words)
        made = {name: loss.each(images, captions, words) for name, loss in self.losses.items()}
        return Pairs(images, captions, words.pos, {name: x for name, x in made.items() if x is not None})

    def terms(self, pairs: Pairs, image: Tensor, epoch: int, teachers: TeacherBatch | None = None) -> dict[str, Tensor]:
        """The weighted loss terms of B matching pairs, by the losses' names; their sum is the loss.

        Parameters
        ----------
        image : int64 ``[B]``, which image each pair is of: captions of one image are not each other's negatives.
        epoch : from 0; decides which terms are on, and between all and hardest negatives.
        teachers : of the same pairs, for losses that need them.
        """
        same = image[:, None] == image[None, :]
        step = Step(pairs.images, pairs.captions, same, pairs.pos, pairs.each, teachers, epoch)
        return {name: loss.options.weight * loss(step) for name, loss in self._on(epoch)}

    def reads(self, epoch: int) -> frozenset[str]:
        """The fields of the encodings that the losses of `epoch` read (`Loss.reads`)."""
        return frozenset().union(*(loss.reads for _, loss in self._on(epoch)))

    def begin(self, epoch: int) -> None:
        """Training mode, but for parts of the base that `epoch` doesn't move at all: they are in evaluation mode."""
        self.train()
        frozen = self._frozen(epoch)
        for module in self.base.modules():
            own = {id(parameter) for parameter in module.parameters()}
            if own and own <= frozen:
                module.eval()

    def drop_gradients(self, epoch: int) -> None:
        """Drop the gradients of what `epoch` doesn't move; call it after backward, before clipping."""
        frozen = self._frozen(epoch)
        for parameter in self.parameters():
            if id(parameter) in frozen:
                parameter.grad = None

    def restarts(self, epoch: int) -> bool:
        """Whether training begins anew from the best weights at `epoch`."""
        return any(loss.restart_epoch == epoch for loss in self.losses.values())

    def judged_by(self, epoch: int) -> set[str]:
        """The figures of the validation whose sum chooses the best epoch."""
        return {loss.judged_by for _, loss in self._on(epoch)} or {"rsum"}

    def example(self) -> tuple[RegionBatch, WordBatch]:
        """Two pairs of zeros that the model can encode."""
        device = next(self.parameters()).device
        zeros, there = torch.zeros(2, 2, dtype=torch.long, device=device), torch.ones(2, 2, device=device).bool()
        dtype = next(self.parameters()).dtype
        regions = RegionBatch(
            features=torch.zeros(2, 2, self._feature_dim, dtype=dtype, device=device),
            boxes=torch.ones(2, 2, 4, dtype=dtype, device=device),
            image_size=torch.ones(2, 2, dtype=dtype, device=device),
            mask=there,
        )
        features = torch.zeros(2, 2, self.words.width, dtype=dtype, device=device)
        words = WordBatch(zeros, zeros.byte(), there, zeros, features=features, pieces=zeros, place=zeros)
        return regions, words

    def _on(self, epoch: int) -> Iterator[tuple[str, Loss]]:
        return ((name, loss) for name, loss in self.losses.items() if loss.is_on(epoch))

    def _frozen(self, epoch: int) -> set[int]:
        return {id(parameter) for loss in self.losses.values() for parameter in loss.frozen(epoch, self)}

    def _encoding(self, side: Side, encoded: Encoded) -> Encoding:
        added, parts = [], {}
        for loss in self.losses.values():
            if (extension := loss.extend(side, encoded)) is not None:
                added.append(extension.embedding)
                parts |= extension.parts
        if self.bag is not None:
            added.append(getattr(self.bag, side)(encoded.locals, encoded.mask))
        return Encoding(
            mask=encoded.mask,
            locals=encoded.locals,
            contextual=encoded.contextual,
            pooled=encoded.pooled,
            view_weights=encoded.view_weights,
            context=torch.cat(added, dim=-1) if added else encoded.pooled[:, 0, :0],
            parts=parts,
        )
