"""The whole model: a base, SelfAlign's modules where asked for, and the losses of one training step.

Nothing crosses modalities when an image or a caption is encoded; a score is a dot product (of the best of a few views).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extract.text.encoder import load_encoder
from extract.text.parts_of_speech import POS_NAMES
from extract.text.vocabulary import MARKS
from manifests.errors import InputError
from train.batches import RegionBatch, TeacherBatch, WordBatch
from train.losses import (
    affine_mse,
    alignment_scores,
    all_pairs_triplet,
    diversity,
    hardest_triplet,
    info_nce,
    listnet,
    ordinal,
)
from train.masking import masked_mean
from train.models.camera import CameraCaptions, CameraImages
from train.models.caption_decoder import CaptionDecoder
from train.models.cusa import SoftLabelAlignment
from train.models.encoding import Encoded, Encoding, similarity
from train.models.transformer import SharedTransformer, TransformerCaptions, TransformerImages
from train.models.vse_infinity import VSEInfinityCaptions, VSEInfinityImages
from train.models.vsrn import VSRNCaptions, VSRNImages
from train.models.words import CachedStates, Transformer, WordEmbedding
from train.selfalign import ConceptAlignment, ConceptBag, ContextAggregation, context_alignment_loss
from train.settings import (
    AladinSettings,
    CameraSettings,
    ConceptSettings,
    RunSettings,
    TransformerSettings,
    VSEInfinitySettings,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def build_model(
    settings: RunSettings,
    feature_dim: int,
    vocabulary_size: int,
    *,
    text_dim: int | None = None,
    marks: tuple[int | None, int | None] = MARKS,
    encoder: "PreTrainedModel | None" = None,
) -> "RetrievalModel":
    """A new model of a data set (`RetrievalData` has most of this).

    Parameters
    ----------
    feature_dim : of the region features.
    vocabulary_size, marks : how many ids the words or word pieces have, and which are a caption's start and end.
    text_dim : of the cached text features, where the run reads them.
    encoder : in the place of the one that ``settings.text.encoder`` names: nothing is looked for then.

    Raises
    ------
    InputError : the encoder isn't on this machine or doesn't fit, or the text features aren't there.
    """
    text = settings.text
    if text.reads == "text_features":
        words = CachedStates(text_dim)
    elif text.encoder:
        words = Transformer(encoder or load_encoder(text.encoder.model, text.encoder.revision), text.encoder.tune)
        words.encoder.require_vocabulary(vocabulary_size, f"encoder {text.encoder.model!r}")
    else:
        words = WordEmbedding(vocabulary_size, text.word_dim)
    return RetrievalModel(settings, feature_dim, vocabulary_size, words, marks)


@dataclass(frozen=True, slots=True)
class Pairs:
    """B matching pairs, encoded: what the losses are made of. Every tensor has one row a pair.

    pos uint8 ``[B, T]`` : parts of speech of the captions' words.
    generation ``[B]`` : each caption's loss of the caption decoder, where there is one.
    """

    images: Encoding
    captions: Encoding
    pos: Tensor
    generation: Tensor | None


class RetrievalModel(nn.Module):
    """A base with or without SelfAlign.

    The final embeddings are (SelfAlign): image ``[base; mean(l) / 2; f / 2]``, caption
    ``[base; f; mean(l)]``, so that one's context locals meet the other's fused context; then the concept bag, where
    there is one. Without either they are the base's own.
    """

    def __init__(
        self,
        settings: RunSettings,
        feature_dim: int,
        vocabulary_size: int,
        words: WordEmbedding | CachedStates | Transformer,
        marks: tuple[int | None, int | None],
    ):
        super().__init__()
        self.settings, self.words, self.marks = settings, words, marks
        base, dim = settings.base, settings.base.dim
        width, ordered = words.width, words.ordered
        self.caption_decoder = None
        if isinstance(base, CameraSettings):
            self.image_encoder = CameraImages(base, feature_dim)
            self.caption_encoder = CameraCaptions(base, width, ordered)
        elif isinstance(base, VSEInfinitySettings):
            self.image_encoder = VSEInfinityImages(base, feature_dim)
            self.caption_encoder = VSEInfinityCaptions(base, width, ordered)
        elif isinstance(base, TransformerSettings):
            shared = SharedTransformer(base, words.encoder if isinstance(words, Transformer) else None)
            self.image_encoder = TransformerImages(base, feature_dim, shared)
            self.caption_encoder = TransformerCaptions(base, width, ordered, shared)
        else:
            self.image_encoder = VSRNImages(base, feature_dim)
            self.caption_encoder = VSRNCaptions(base, width)
            if base.caption_decoder:
                if None in marks:
                    raise InputError(
                        "the tokenizer has no ids for a caption's start and end (CLS and SEP, or BOS and EOS)",
                        where="base.caption_decoder",
                        fix="leave caption_decoder out, or use another tokenizer",
                    )
                self.caption_decoder = CaptionDecoder(
                    dim, vocabulary_size, settings.text.word_dim, base.caption_decoder.dim, *marks
                )
        aligned = settings.selfalign
        concept, context, bag = aligned and aligned.concept, aligned and aligned.context, aligned and aligned.bag
        self.concept = (
            ConceptAlignment(
                dim,
                concept.num_concepts,
                concept.temperature,
                concept.epsilon,
                concept.sinkhorn_iterations,
                concept.both_directions,
            )
            if concept
            else None
        )
        self.image_context = ContextAggregation(dim) if context else None
        self.caption_context = ContextAggregation(dim) if context else None
        self.bag = ConceptBag(dim, bag.num_concepts, bag.temperature, bag.codebook) if bag else None
        taught = settings.aladin and settings.aladin.distillation
        self.affine = nn.Parameter(torch.tensor([0.5, 0.5])) if taught and taught.mode == "mse" else None
        whole = dim + (2 * dim if context else 0) + (bag.num_concepts if bag else 0)
        self.cusa = SoftLabelAlignment(settings.cusa, whole) if settings.cusa else None

    @property
    def text_record(self) -> dict[str, Any]:
        """What `build_model` needs of the text side beside the settings, as JSON; the encoder as its configuration."""
        cached, encoder = isinstance(self.words, CachedStates), isinstance(self.words, Transformer)
        return {
            "text_dim": self.words.width if cached else None,
            "marks": list(self.marks),
            "encoder": self.words.config if encoder else None,
        }

    def encode_images(self, batch: RegionBatch) -> Encoding:
        """Encode B images."""
        encoded = self.image_encoder(batch)
        bag = self.bag.images(encoded.locals, encoded.mask) if self.bag is not None else None
        if self.image_context is None:
            return _encoding(encoded, bag)
        context = self.image_context(encoded.contextual, encoded.mask)
        mean = masked_mean(context.locals, encoded.mask)
        return _encoding(encoded, mean / 2, context.fused / 2, bag, locals_=context.locals, guided=context.guided)

    def encode_captions(self, batch: WordBatch) -> Encoding:
        """Encode B captions."""
        encoded = self.caption_encoder(self.words(batch), batch.mask)
        bag = self.bag.captions(encoded.locals, encoded.mask) if self.bag is not None else None
        if self.caption_context is None:
            return _encoding(encoded, bag)
        context = self.caption_context(encoded.contextual, encoded.mask)
        mean = masked_mean(context.locals, encoded.mask)
        return _encoding(encoded, context.fused, mean, bag, locals_=context.locals, guided=context.guided)

    def aligned(self, encoding: Encoding) -> Tensor:
        """The locals ``[B, N, D]`` that ALADIN's teacher compares; those before context where there is no teacher."""
        aladin = self.settings.aladin
        return encoding.contextual if aladin and aladin.alignment.locals == "contextual" else encoding.locals

    def forward(self, regions: RegionBatch, words: WordBatch) -> Pairs:
        """Encode B matching pairs for `losses`; the only part that has a batch's size in memory many times over."""
        images, captions = self.encode_images(regions), self.encode_captions(words)
        generation = None
        if self.caption_decoder is not None:
            generation = self.caption_decoder(images.contextual, images.mask, words.words, words.mask)
        return Pairs(images, captions, words.pos, generation)

    def losses(
        self, pairs: Pairs, image: Tensor, epoch: int, teachers: TeacherBatch | None = None
    ) -> dict[str, Tensor]:
        """The weighted loss terms of B matching pairs; their sum is the loss.

        Parameters
        ----------
        image : int64 ``[B]``, which image each pair is of: captions of one image are not each other's negatives.
        epoch : from 0; decides between all and hardest negatives, and which terms are on yet.
        teachers : of the same pairs, for a run with CUSA.
        """
        settings, images, captions = self.settings, pairs.images, pairs.captions
        same = image[:, None] == image[None, :]
        scores = similarity(images, captions)
        ranking = all_pairs_triplet if epoch < settings.triplet.all_negatives_epochs else hardest_triplet
        terms = {"triplet": ranking(scores, settings.triplet.margin, same)}
        if settings.contrast:
            terms["contrast"] = settings.contrast.weight * info_nce(scores, settings.contrast.temperature, same)
        if images.view_weights is not None:
            terms["diversity"] = settings.base.diversity * diversity(images.view_weights, images.mask)
        if pairs.generation is not None:
            terms["generation"] = settings.base.caption_decoder.weight * pairs.generation.mean()
        if settings.aladin:
            terms |= self._aladin_losses(settings.aladin, pairs, scores, same, epoch)
        if self.cusa is not None:
            terms |= self.cusa(images, captions, scores, same, teachers)
        aligned = settings.selfalign
        if aligned is None:
            return terms
        if aligned.word_region:
            mean = alignment_scores(images.locals, captions.locals, images.mask, captions.mask) / captions.mask.sum(1)
            terms["word_region"] = aligned.word_region.weight * info_nce(mean, aligned.word_region.temperature, same)
        if aligned.concept and epoch >= aligned.concept.start_epoch:
            terms["lca"] = aligned.concept.weight * self._concept_loss(aligned.concept, pairs)
        if aligned.context:
            terms["cra"] = aligned.context.weight / 2 * sum(
                context_alignment_loss(
                    side.context_locals,
                    other.guided,
                    aligned.context.temperature,
                    aligned.context.num_negatives,
                    side.mask,
                    same,
                )
                for side, other in ((images, captions), (captions, images))
            )  # fmt: skip
        return terms

    def settle(self, epoch: int) -> None:
        """Put a teacher that is frozen in `epoch` into evaluation mode; call it after ``train()``."""
        for module in self._frozen(epoch):
            module.eval()

    def freeze_gradients(self, epoch: int) -> None:
        """Drop the gradients of what `epoch` doesn't move; call it after backward, before clipping."""
        concept = self.settings.selfalign and self.settings.selfalign.concept
        if concept and epoch < concept.start_epoch + concept.frozen_epochs:
            self.concept.codebook.grad = None
        for module in self._frozen(epoch):
            module.zero_grad(set_to_none=True)

    def _frozen(self, epoch: int) -> list[nn.Module]:
        """All that makes the teacher's scores, where `epoch` has a frozen teacher."""
        aladin = self.settings.aladin
        if not (aladin and _frozen_teacher(aladin, epoch)):
            return []
        kind = aladin.alignment.locals
        parts = (self.words, *self.image_encoder.makers(kind), *self.caption_encoder.makers(kind))
        return [part for part in parts if part is not None]

    def _aladin_losses(
        self, settings: AladinSettings, pairs: Pairs, student: Tensor, same: Tensor, epoch: int
    ) -> dict[str, Tensor]:
        alignment, distillation = settings.alignment, settings.distillation
        images, captions = pairs.images, pairs.captions
        frozen = _frozen_teacher(settings, epoch)
        with torch.set_grad_enabled(not frozen and torch.is_grad_enabled()):
            teacher = alignment_scores(self.aligned(images), self.aligned(captions), images.mask, captions.mask)
        terms = {}
        if not frozen:
            ranking = all_pairs_triplet if epoch < alignment.all_negatives_epochs else hardest_triplet
            ranked = teacher / captions.mask.sum(1) if alignment.over_words == "mean" else teacher
            terms["alignment"] = alignment.weight * ranking(ranked, alignment.margin, same)
        if distillation and epoch >= distillation.start_epoch:
            if distillation.mode == "listnet":
                loss = listnet(teacher, student, distillation.scale)
            else:
                loss = ordinal(teacher, student) if self.affine is None else affine_mse(teacher, student, self.affine)
            terms["distillation"] = distillation.weight * loss
        return terms

    def _concept_loss(self, settings: ConceptSettings, pairs: Pairs) -> Tensor:
        images, captions = pairs.images, pairs.captions
        regions, words = images.locals, captions.locals
        if settings.locals == "contextual":
            regions, words = F.normalize(images.contextual, dim=-1), F.normalize(captions.contextual, dim=-1)
        chosen = None
        if settings.parts_of_speech:
            tags = torch.tensor([POS_NAMES.index(tag) for tag in settings.parts_of_speech], device=words.device)
            chosen = torch.isin(pairs.pos, tags)
        return self.concept(regions, words, captions.mask, images.mask, chosen)


def _frozen_teacher(settings: AladinSettings, epoch: int) -> bool:
    taught = settings.distillation
    return taught is not None and taught.teacher == "frozen" and epoch >= taught.start_epoch


def _encoding(
    encoded: Encoded, *context: Tensor | None, locals_: Tensor | None = None, guided: Tensor | None = None
) -> Encoding:
    parts = [part for part in context if part is not None]
    return Encoding(
        mask=encoded.mask,
        locals=encoded.locals,
        contextual=encoded.contextual,
        pooled=encoded.pooled,
        view_weights=encoded.view_weights,
        context=torch.cat(parts, dim=-1) if parts else encoded.pooled[:, 0, :0],
        context_locals=locals_,
        guided=guided,
    )
