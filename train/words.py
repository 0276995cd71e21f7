"""Where a base's words come from: learned embeddings, cached states of a frozen encoder, or an encoder in the loop.

Each gives ``[B, T, width]`` of a `WordBatch`; `ordered` says whether a vector knows its place and neighbours.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from extract.text.encoder import PieceEncoder, load_encoder, mask_id_of
from extract.text.vocabulary import SPECIAL, UNKNOWN
from manifests.errors import InputError
from manifests.typed import Settings
from train.batches import WordBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class EncoderSettings(Settings):
    """A Hugging Face text encoder that is run, and may be tuned, in training."""

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


class Words(nn.Module):
    """Gives the words ``[B, T, width]`` of a `WordBatch`.

    Attributes
    ----------
    width : of a word's vector.
    ordered : whether it knows its place and neighbours.
    vocabulary_size, first_word, mask_id : of ids that may stand in the place of others; mask_id None: none may.
    """

    width: int
    ordered: bool
    vocabulary_size: int = 0
    first_word: int = 0
    mask_id: int | None = None


class WordEmbedding(Words):
    """Learned vectors of the words of a vocabulary; 0 is padding."""

    ordered = False
    first_word, mask_id = len(SPECIAL), UNKNOWN

    def __init__(self, vocabulary_size: int, width: int):
        super().__init__()
        self.width, self.vocabulary_size = width, vocabulary_size
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        nn.init.uniform_(self.embedding.weight[1:], -0.1, 0.1)

    def forward(self, batch: WordBatch) -> Tensor:
        """``[B, T, width]``."""
        return self.embedding(batch.words)


class CachedStates(Words):
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
        return batch.widened().features


class Transformer(Words):
    """A Hugging Face encoder that is run in training, over whole captions of word pieces.

    Parameters
    ----------
    model : the encoder, for instance `extract.text.encoder.load_encoder`'s, or ``BertModel(BertConfig())``.
    tune : false keeps its weights and its evaluation mode: its states are then those that `CachedStates` reads.
    mask_id : of its tokenizer's mask, where it has one.
    """

    ordered = True

    def __init__(self, model: "PreTrainedModel", tune: bool, mask_id: int | None = None):
        super().__init__()
        self.encoder, self.tune, self.mask_id = PieceEncoder(model), tune, mask_id
        self.vocabulary_size = self.encoder.vocabulary_size
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

    def whole(self, batch: WordBatch) -> tuple[Tensor, Tensor]:
        """The states ``[B, P, width]`` of whole captions, special tokens included, and their mask ``[B, P]``."""
        mask = batch.pieces >= 0
        with torch.set_grad_enabled(self.tune and torch.is_grad_enabled()):
            return self.encoder(batch.pieces.clamp(min=0), mask), mask

    def forward(self, batch: WordBatch) -> Tensor:
        """``[B, T, width]``."""
        return at_words(self.whole(batch)[0], batch)


def at_words(states: Tensor, batch: WordBatch) -> Tensor:
    """The states ``[B, T, W]`` of the pieces of words, of those ``[B, P, W]`` of whole captions."""
    taken = states.gather(1, batch.place[..., None].expand(-1, -1, states.shape[-1]))
    return taken * batch.mask[..., None]


def words_of(
    text: TextSettings, vocabulary_size: int, text_dim: int | None, encoder: "PreTrainedModel | None" = None
) -> Words:
    """What gives a run's words. `encoder` stands in the place of the one that `text` names: nothing is looked for then.

    Raises `InputError` where the encoder isn't on this machine or doesn't fit, and where there are no text features.
    """
    if text.reads == "text_features":
        return CachedStates(text_dim)
    if text.encoder is None:
        return WordEmbedding(vocabulary_size, text.word_dim)
    named = text.encoder.model, text.encoder.revision
    words = Transformer(encoder or load_encoder(*named), text.encoder.tune, None if encoder else mask_id_of(*named))
    words.encoder.require_vocabulary(vocabulary_size, f"encoder {text.encoder.model!r}")
    return words
