"""The whole model: a base, SelfAlign's modules where asked for, and the losses of one training step.

Nothing crosses modalities when an image or a caption is encoded; a score is a dot product (of the best of a few views).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extract.text.parts_of_speech import POS_NAMES
from train.batches import RegionBatch, WordBatch
from train.losses import alignment_scores, all_pairs_triplet, diversity, hardest_triplet, info_nce
from train.masking import masked_mean
from train.models.camera import CameraCaptions, CameraImages
from train.models.caption_decoder import CaptionDecoder
from train.models.encoding import Encoded, Encoding, similarity
from train.models.vse_infinity import VSEInfinityCaptions, VSEInfinityImages
from train.models.vsrn import VSRNCaptions, VSRNImages
from train.models.words import WordEmbedding
from train.selfalign import ConceptAlignment, ConceptBag, ContextAggregation, context_alignment_loss
from train.settings import CameraSettings, ConceptSettings, RunSettings, VSEInfinitySettings


def build_model(settings: RunSettings, feature_dim: int, vocabulary_size: int) -> "RetrievalModel":
    """A new model for region features of `feature_dim` numbers and a vocabulary of that size."""
    return RetrievalModel(settings, feature_dim, vocabulary_size)


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

    The final embeddings are (METHODS.md, "Final embeddings"): image ``[base; mean(l) / 2; f / 2]``, caption
    ``[base; f; mean(l)]``, so that one's context locals meet the other's fused context; then the concept bag, where
    there is one. Without either they are the base's own.
    """

    def __init__(self, settings: RunSettings, feature_dim: int, vocabulary_size: int):
        super().__init__()
        self.settings = settings
        base, dim = settings.base, settings.base.dim
        self.words = WordEmbedding(vocabulary_size, settings.text.word_dim)
        width, ordered = self.words.width, self.words.ordered
        self.caption_decoder = None
        if isinstance(base, CameraSettings):
            self.image_encoder = CameraImages(base, feature_dim)
            self.caption_encoder = CameraCaptions(base, width, ordered)
        elif isinstance(base, VSEInfinitySettings):
            self.image_encoder = VSEInfinityImages(base, feature_dim)
            self.caption_encoder = VSEInfinityCaptions(base, width, ordered)
        else:
            self.image_encoder = VSRNImages(base, feature_dim)
            self.caption_encoder = VSRNCaptions(base, width)
            if base.caption_decoder:
                self.caption_decoder = CaptionDecoder(
                    dim, vocabulary_size, settings.text.word_dim, base.caption_decoder.dim
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

    def forward(self, regions: RegionBatch, words: WordBatch) -> Pairs:
        """Encode B matching pairs for `losses`; the only part that has a batch's size in memory many times over."""
        images, captions = self.encode_images(regions), self.encode_captions(words)
        generation = None
        if self.caption_decoder is not None:
            generation = self.caption_decoder(images.contextual, images.mask, words.words, words.mask)
        return Pairs(images, captions, words.pos, generation)

    def losses(self, pairs: Pairs, image: Tensor, epoch: int) -> dict[str, Tensor]:
        """The weighted loss terms of B matching pairs; their sum is the loss.

        Parameters
        ----------
        image : int64 ``[B]``, which image each pair is of: captions of one image are not each other's negatives.
        epoch : from 0; decides between all and hardest negatives, and which terms are on yet.
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

    def freeze_gradients(self, epoch: int) -> None:
        """Drop the gradients that `epoch` doesn't use yet; call it after backward, before clipping."""
        concept = self.settings.selfalign and self.settings.selfalign.concept
        if concept and epoch < concept.start_epoch + concept.frozen_epochs:
            self.concept.codebook.grad = None

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
