"""The whole model: a base, SelfAlign's two modules where asked for, and the losses of one training step.

Nothing crosses modalities when an image or a caption is encoded; a score is a dot product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.batches import RegionBatch, WordBatch
from train.losses import all_pairs_triplet, hardest_triplet, info_nce
from train.masking import masked_mean
from train.models.encoded import Encoded
from train.models.vsrn import VSRN
from train.selfalign import ConceptAlignment, ContextAggregation, context_alignment_loss
from train.selfalign.context import Context
from train.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Encoding:
    """Images or captions ready for search.

    embedding ``[B, E]`` : scores are dot products of these.
    locals ``[B, N, D]`` : unit-length regions or words before context, with their mask ``[B, N]``.
    """

    embedding: Tensor
    locals: Tensor
    mask: Tensor


def build_model(settings: RunSettings, feature_dim: int, vocabulary_size: int) -> "RetrievalModel":
    """A new model for region features of `feature_dim` numbers and a vocabulary of that size."""
    return RetrievalModel(settings, VSRN(settings.base, feature_dim, vocabulary_size))


class RetrievalModel(nn.Module):
    """A base with or without SelfAlign.

    The final embeddings are (METHODS.md, "Final embeddings"): image ``[base; mean(l) / 2; f / 2]``, caption
    ``[base; f; mean(l)]``, so that one's context locals meet the other's fused context; without the context module
    they are the base's own.
    """

    def __init__(self, settings: RunSettings, base: nn.Module):
        super().__init__()
        self.settings, self.base = settings, base
        dim = settings.base.dim
        concept = settings.selfalign and settings.selfalign.concept
        context = settings.selfalign and settings.selfalign.context
        self.concept = (
            ConceptAlignment(
                dim, concept.num_concepts, concept.temperature, concept.epsilon, concept.sinkhorn_iterations
            )
            if concept
            else None
        )
        self.image_context = ContextAggregation(dim) if context else None
        self.caption_context = ContextAggregation(dim) if context else None

    def encode_images(self, batch: RegionBatch) -> Encoding:
        """Encode B images."""
        encoded = self.base.encode_images(batch)
        context = self._context(self.image_context, encoded, batch.mask)
        return Encoding(_image_embedding(encoded, context, batch.mask), encoded.local, batch.mask)

    def encode_captions(self, batch: WordBatch) -> Encoding:
        """Encode B captions."""
        encoded = self.base.encode_captions(batch)
        context = self._context(self.caption_context, encoded, batch.mask)
        return Encoding(_caption_embedding(encoded, context, batch.mask), encoded.local, batch.mask)

    def losses(self, regions: RegionBatch, words: WordBatch, image: Tensor, epoch: int) -> dict[str, Tensor]:
        """The weighted loss terms of B matching pairs; their sum is the loss.

        Parameters
        ----------
        image : int64 ``[B]``, which image each pair is of: captions of one image are not each other's negatives.
        epoch : from 0; decides between all and hardest negatives, and whether the codebook moves yet.
        """
        settings = self.settings
        images, captions = self.base.encode_images(regions), self.base.encode_captions(words)
        seen = self._context(self.image_context, images, regions.mask)
        said = self._context(self.caption_context, captions, words.mask)
        same = image[:, None] == image[None, :]
        scores = _image_embedding(images, seen, regions.mask) @ _caption_embedding(captions, said, words.mask).T
        ranking = all_pairs_triplet if epoch < settings.triplet.all_negatives_epochs else hardest_triplet
        terms = {"triplet": ranking(scores, settings.triplet.margin, same)}
        if settings.contrast:
            terms["contrast"] = settings.contrast.weight * info_nce(scores, settings.contrast.temperature, same)
        if self.concept is not None:
            weight = settings.selfalign.concept.weight
            terms["lca"] = weight * self.concept(images.local, captions.local, words.mask, regions.mask)
        if seen is not None:
            context = settings.selfalign.context
            terms["cra"] = (
                context.weight
                * (
                    context_alignment_loss(
                        seen.locals, said.guided, context.temperature, context.num_negatives, regions.mask, same
                    )
                    + context_alignment_loss(
                        said.locals, seen.guided, context.temperature, context.num_negatives, words.mask, same
                    )
                )
                / 2
            )
        return terms

    def freeze_gradients(self, epoch: int) -> None:
        """Drop the gradients that `epoch` doesn't use yet; call it after backward, before clipping."""
        if self.concept is not None and epoch < self.settings.selfalign.concept.frozen_epochs:
            self.concept.codebook.grad = None

    @staticmethod
    def _context(module: ContextAggregation | None, encoded: Encoded, mask: Tensor) -> Context | None:
        return None if module is None else module(encoded.contextual, mask)


def _image_embedding(encoded: Encoded, context: Context | None, mask: Tensor) -> Tensor:
    if context is None:
        return encoded.pooled
    return torch.cat([encoded.pooled, masked_mean(context.locals, mask) / 2, context.fused / 2], dim=-1)


def _caption_embedding(encoded: Encoded, context: Context | None, mask: Tensor) -> Tensor:
    if context is None:
        return encoded.pooled
    return torch.cat([encoded.pooled, context.fused, masked_mean(context.locals, mask)], dim=-1)
