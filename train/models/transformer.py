"""One transformer encoder that reads words and, separately, regions: ALADIN's backbone (Messina et al., CBMI 2022).

A region enters as a projection of its feature and its box, a word as the encoder's own embedding. What comes out is
projected: the locals that the alignment head compares (section 3.2). A matching head, shared as well, reads them and
gives one vector a side (section 3.3): here the mean over its states, published the first state. The encoder is a new
one of the settings' size, over words, or the run's `text.encoder`, over word pieces. ALADIN's sees the labels of
detected objects beside the regions; this one doesn't, since region stores need not have any.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extract.text.encoder import PieceEncoder
from manifests.errors import InputError
from train.batches import RegionBatch
from train.masking import masked_mean
from train.models.camera import box_geometry
from train.models.encoding import Encoded, Locals
from train.settings import TransformerSettings


class SharedTransformer(nn.Module):
    """The encoder and the matching head of both sides.

    Parameters
    ----------
    borrowed : the words' own encoder, to be used for regions too; None makes a new one.
    """

    def __init__(self, settings: TransformerSettings, borrowed: PieceEncoder | None):
        super().__init__()
        if borrowed:
            borrowed.require_vectors()
        self.own = None if borrowed else _new_encoder(settings)
        self._borrowed = (borrowed,)  # in a tuple: it has its place among the words, and a checkpoint has it once
        layers = [
            nn.TransformerEncoderLayer(
                settings.dim, settings.heads, settings.dim, settings.dropout, batch_first=True
            )
            for _ in range(settings.head_layers)
        ]  # fmt: skip
        self.matching = nn.ModuleList(layers)

    @property
    def encoder(self) -> PieceEncoder:
        return self.own or self._borrowed[0]

    def encoded(self, contextual: Tensor, mask: Tensor) -> Encoded:
        """What a side is, of its projected states ``[B, N, D]``."""
        x = contextual
        for layer in self.matching:
            x = layer(x, src_key_padding_mask=~mask)
        x = x.masked_fill(~mask[..., None], 0)
        return Encoded(
            mask=mask,
            locals=F.normalize(contextual, dim=-1),
            contextual=contextual,
            pooled=F.normalize(masked_mean(x, mask), dim=-1)[:, None],
        )


class TransformerImages(nn.Module):
    """Regions of `feature_dim` numbers to `Encoded`."""

    def __init__(self, settings: TransformerSettings, feature_dim: int, shared: SharedTransformer):
        super().__init__()
        self._shared = (shared,)  # the captions' encoder has it
        self.projection = nn.Linear(feature_dim + 6, shared.encoder.width)
        self.local = nn.Linear(shared.encoder.width, settings.dim)

    def makers(self, _locals: Locals) -> tuple[nn.Module | None, ...]:
        """The parts that make an image's locals, which always know their context; not the words' own encoder."""
        return self.projection, self._shared[0].own, self.local

    def forward(self, batch: RegionBatch) -> Encoded:
        (shared,) = self._shared
        seen = torch.cat([batch.features, box_geometry(batch.boxes, batch.image_size)], dim=-1)
        states = shared.encoder.of_vectors(self.projection(seen), batch.mask, ordered=False)
        return shared.encoded(self.local(states), batch.mask)


class TransformerCaptions(nn.Module):
    """Words of `width` numbers to `Encoded`; those that are `ordered` are the shared encoder's states already."""

    def __init__(self, settings: TransformerSettings, width: int, ordered: bool, shared: SharedTransformer):
        super().__init__()
        self.shared, self.most = shared, settings.positions
        self.projection = None if ordered else nn.Linear(width, shared.encoder.width)
        self.local = nn.Linear(shared.encoder.width, settings.dim)

    def makers(self, _locals: Locals) -> tuple[nn.Module | None, ...]:
        """The parts that make a caption's locals, beside the words."""
        return self.projection, self.shared.own, self.local

    def forward(self, words: Tensor, mask: Tensor) -> Encoded:
        states = words
        if self.projection is not None:
            if words.shape[1] > self.most:
                raise InputError(
                    f"a caption has {words.shape[1]} words, the encoder reads {self.most}",
                    where="base.positions",
                    fix="set it to the longest caption's number of words",
                )
            states = self.shared.encoder.of_vectors(self.projection(words), mask, ordered=True)
        return self.shared.encoded(self.local(states), mask)


def _new_encoder(settings: TransformerSettings) -> PieceEncoder:
    from transformers import BertConfig, BertModel

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
