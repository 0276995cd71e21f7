"""Where a base's words come from: learned embeddings, cached states of a frozen encoder, or an encoder in the loop.

Each gives ``[B, T, width]`` of a `WordBatch`; `ordered` says whether a vector knows its place and neighbours.
"""

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from extract.text.encoder import PieceEncoder
from manifests.errors import InputError
from train.batches import WordBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class WordEmbedding(nn.Module):
    """Learned vectors of the words of a vocabulary; 0 is padding."""

    ordered = False

    def __init__(self, vocabulary_size: int, width: int):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        nn.init.uniform_(self.embedding.weight[1:], -0.1, 0.1)

    def forward(self, batch: WordBatch) -> Tensor:
        """``[B, T, width]``."""
        return self.embedding(batch.words)


class CachedStates(nn.Module):
    """The states that a text feature store keeps of a frozen encoder, as they are."""

    ordered = True

    def __init__(self, width: int | None):
        super().__init__()
        if width is None:
            raise InputError(
                "the data has no text features",
                where="text.reads: text_features",
                fix="add the data set below text_features: in params.yaml and run `dvc repro text_features@<data set>`",
            )
        self.width = width

    def forward(self, batch: WordBatch) -> Tensor:
        """``[B, T, width]``."""
        return batch.features


class Transformer(nn.Module):
    """A Hugging Face encoder that is run in training, over whole captions of word pieces.

    Parameters
    ----------
    model : the encoder, for instance `extract.text.encoder.load_encoder`'s, or ``BertModel(BertConfig())``.
    tune : false keeps its weights and its evaluation mode: its states are then those that `CachedStates` reads.
    """

    ordered = True

    def __init__(self, model: "PreTrainedModel", tune: bool):
        super().__init__()
        self.encoder, self.tune = PieceEncoder(model), tune
        self.encoder.requires_grad_(tune)
        self.train()

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def config(self) -> dict[str, Any]:
        """What `extract.text.encoder.encoder_of` makes an encoder of this architecture from."""
        return self.encoder.config

    def train(self, mode: bool = True) -> Self:
        """As every module's, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not self.tune:
            self.encoder.eval()
        return self

    def forward(self, batch: WordBatch) -> Tensor:
        """``[B, T, width]``."""
        with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
            states = self.encoder(batch.pieces.clamp(min=0), batch.pieces >= 0)
        states = states.gather(1, batch.place[..., None].expand(-1, -1, states.shape[-1]))
        return states * batch.mask[..., None]
