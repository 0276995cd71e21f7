"""One transformer encoder that reads words and, separately, regions: ALADIN's backbone (Messina et al., CBMI 2022).

A region enters as a projection of its feature and its box with a LayerNorm of its own, without position or type. A word
enters as the encoder's own embedding. The encoder's states are the locals that the alignment head compares (section
3.2). A matching head, shared as well, reads them and gives one vector a side (section 3.3). The encoder is a new one of
the settings' size, over words, or the run's `text.encoder`, over word pieces. ALADIN's sees the labels of detected
objects beside the regions; this one doesn't, since region stores need not have any.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from extract.text.encoder import PieceEncoder
from manifests.errors import InputError
from train.bases import BASES
from train.bases.base import Base, BaseSettings, Published
from train.bases.geometry import box_corners
from train.batches import RegionBatch, WordBatch
from train.encoding import Encoded
from train.masking import masked_mean
from train.precision import unit
from train.words import Transformer, Words, at_words

MOST_LAYERS = 1000  # a record of a checkpoint may say anything


class TransformerSettings(BaseSettings):
    dim: int = Field(768, ge=2, description="D, the joint dimension: the encoder's width")
    layers: int = Field(12, ge=1, le=MOST_LAYERS, description="of a new encoder")
    heads: int = Field(12, ge=1, description="of its attention; they share D evenly")
    positions: int = Field(128, ge=1, description="words of the longest caption that a new encoder reads")
    head_layers: int = Field(2, ge=0, le=MOST_LAYERS, description="of the matching head, whose vector is searched with")
    head_heads: int = Field(4, ge=1, description="of the matching head's attention; they share D evenly")
    pooling: Literal["first", "mean"] = Field(
        "first",
        description="of the matching head's states: the first (CLS, or the first region or word), or their mean",
    )
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.dim % self.head_heads:
            raise ValueError(f"{self.head_heads} heads can't share {self.dim} dimensions evenly")
        return self


class MatchingHead(nn.Module):
    """The encoder's states of a side to one vector: a small transformer (section 3.3)."""

    def __init__(self, settings: TransformerSettings):
        super().__init__()
        dim, heads, self.pooling = settings.dim, settings.head_heads, settings.pooling
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, dim, settings.dropout, batch_first=True)
            for _ in range(settings.head_layers)
        )

    def states(self, x: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, N, D]`` to states ``[B, N, D]``; those of padding mean nothing."""
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        return x

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """States ``[B, N, D]`` to unit-length vectors ``[B, D]``."""
        x = self.states(x, mask)
        pooled = x[:, 0] if self.pooling == "first" else masked_mean(x.masked_fill(~mask[..., None], 0), mask)
        return unit(pooled)


class RegionEmbedding(nn.Module):
    """What stands in the place of a word's embedding: ``LayerNorm(W [feature; box])``."""

    def __init__(self, feature_dim: int, dim: int, dropout: float):
        super().__init__()
        self.projection, self.norm = nn.Linear(feature_dim + 6, dim), nn.LayerNorm(dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, R, F + 6]`` to ``[B, R, D]``."""
        return self.dropout(self.norm(self.projection(x)))


@BASES.add("transformer")
class SharedTransformer(Base):
    Settings = TransformerSettings
    reads_boxes = True
    runs_encoder = True

    def __init__(self, settings: TransformerSettings, feature_dim: int, words: Words):
        super().__init__()
        self.words, self.most = words, settings.positions
        if isinstance(words, Transformer):
            words.encoder.require_vectors()
            if words.width != settings.dim:
                raise InputError(
                    f"base.dim is {settings.dim}, and text.encoder's states have {words.width} numbers",
                    where="base transformer",
                    fix=f"set base.dim to {words.width}",
                )
            self.projection, self.own = None, None
        else:
            self.projection, self.own = nn.Linear(words.width, settings.dim), _new_encoder(settings)
        self.regions = RegionEmbedding(feature_dim, settings.dim, settings.dropout)
        self.matching = MatchingHead(settings)

    @property
    def encoder(self) -> PieceEncoder:
        return self.own or self.words.encoder

    def encode_images(self, batch: RegionBatch) -> Encoded:
        seen = torch.cat([batch.features, box_corners(batch.boxes, batch.image_size)], dim=-1)
        return self._encoded(self.encoder.of_embedded(self.regions(seen), batch.mask), batch.mask)

    def encode_captions(self, batch: WordBatch) -> Encoded:
        if self.own is None:
            whole, there = self.words.whole(batch)
            return self._encoded(at_words(whole, batch), batch.mask, self.matching(whole, there))
        if batch.words.shape[1] > self.most:
            raise InputError(
                f"a caption has {batch.words.shape[1]} words, the encoder reads {self.most}",
                where="base.positions",
                fix="set it to the longest caption's number of words",
            )
        states = self.own.of_vectors(self.projection(self.words(batch)), batch.mask)
        return self._encoded(states, batch.mask)

    def _encoded(self, states: Tensor, mask: Tensor, pooled: Tensor | None = None) -> Encoded:
        pooled = self.matching(states, mask) if pooled is None else pooled
        return Encoded(mask=mask, locals=unit(states), contextual=states, pooled=pooled[:, None])

    def published(self) -> Published:
        theirs, encoder = "oscar_model.bert.", "own.model." if self.own else "words.encoder.model."
        return Published(
            images={
                f"{theirs}embeddings.": f"{encoder}embeddings.",
                f"{theirs}encoder.": f"{encoder}encoder.",
                f"{theirs}img_embedding.": "regions.projection.",
                f"{theirs}LayerNorm.": "regions.norm.",
                "final_projection_net.": "matching.",
            },
            captions={},
            unread=(f"{theirs}pooler.", f"{theirs}embeddings.position_ids"),
        )


def _new_encoder(settings: TransformerSettings) -> PieceEncoder:
    from transformers import BertConfig, BertModel

    if settings.dim % settings.heads:
        raise InputError(
            f"{settings.heads} heads can't share {settings.dim} dimensions evenly",
            where="base.heads",
            fix="set it to a divisor of base.dim",
        )
    config = BertConfig(
        vocab_size=1,  # words come as vectors
        hidden_size=settings.dim,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.dim,
        max_position_embeddings=settings.positions,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        pad_token_id=None,
    )
    return PieceEncoder(BertModel(config, add_pooling_layer=False))
