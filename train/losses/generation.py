"""VSRN's caption generation (Li et al., ICCV 2019, section 3.4): write the caption from its image's regions.

A GRU reads the contextual regions. A second one writes, attending to the first one's states at every word (sequence to
sequence, video to text: Venugopalan et al., ICCV 2015). Used in training only.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from manifests.errors import InputError
from train.batches import WordBatch
from train.encoding import Encoding
from train.losses import LOSSES
from train.losses.loss import Loss, LossSettings, Shape, Step
from train.masking import last_valid
from train.precision import GRU


class GenerationSettings(LossSettings):
    dim: int = Field(512, ge=1, description="hidden size of the decoder")
    dropout: float = Field(0.2, ge=0, lt=1, description="of what both GRUs read")


@LOSSES.add("generation")
class Generation(Loss):
    """The negative log-likelihood of the captions, summed over words and end, the mean over captions."""

    Settings = GenerationSettings
    training_only = True
    published = {
        "encoder.vid2hid.": "projection.",
        "encoder.rnn.": "reader.",
        "decoder.embedding.": "embedding.",
        "decoder.attention.linear1.": "energy.",
        "decoder.attention.linear2.": "score.",
        "decoder.rnn.": "writer.",
        "decoder.out.": "out.",
    }

    def __init__(self, settings: GenerationSettings, shape: Shape, others: Mapping[str, Loss]):
        super().__init__(settings, shape, others)
        if None in shape.boundary_ids:
            raise InputError(
                "the tokenizer has no ids for a caption's start and end (CLS and SEP, or BOS and EOS)",
                where="losses.generation",
                fix="leave generation out, or use another tokenizer",
            )
        (self.start, self.end), dim, width = shape.boundary_ids, settings.dim, shape.word_dim
        self.projection = nn.Linear(shape.dim, dim)
        self.reader = GRU(dim, dim)
        self.embedding = nn.Embedding(shape.vocabulary_size, width)
        self.energy, self.score = nn.Linear(2 * dim, dim), nn.Linear(dim, 1, bias=False)
        self.writer = GRU(dim + width, dim)
        self.out = nn.Linear(dim, shape.vocabulary_size)
        self.dropout = nn.Dropout(settings.dropout)

    def each(self, images: Encoding, captions: Encoding, words: WordBatch) -> Tensor:
        return self.losses(images.unit("contextual"), images.mask, words.words, words.mask)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset()

    def forward(self, step: Step) -> Tensor:
        return step.each[self.name].mean()

    def losses(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Each caption's negative log-likelihood ``[B]``, summed over its words and the end.

        Parameters
        ----------
        regions ``[B, R, D]`` of unit length, region_mask ``[B, R]``; words int64 ``[B, T]``, word_mask ``[B, T]``.
        """
        states = self.reader(self.dropout(self.projection(regions)))
        hidden = last_valid(states, region_mask)
        lengths = word_mask.sum(1)
        words = words.masked_fill(~word_mask, 0)
        embedded = self.embedding(F.pad(words, (1, 0), value=self.start))
        # The half of `energy` that reads the regions' states is the same at every word.
        of_states, of_hidden = self.energy.weight.chunk(2, dim=1)
        keys = F.linear(states, of_states, self.energy.bias)
        written = []
        for step in range(embedded.shape[1]):
            energy = self.score(torch.tanh(keys + F.linear(hidden, of_hidden)[:, None])).squeeze(-1)
            attention = energy.masked_fill(~region_mask, -torch.inf).softmax(-1)
            context = (attention[..., None] * states).sum(1)
            read = self.dropout(torch.cat([embedded[:, step], context], dim=-1))
            hidden = self.writer(read[:, None], hidden)[:, 0]
            written.append(hidden)
        targets = F.pad(words, (0, 1))
        targets[torch.arange(len(words), device=words.device), lengths] = self.end
        in_caption = torch.arange(targets.shape[1], device=words.device) <= lengths[:, None]
        likely = self.out(torch.stack(written, dim=1)).transpose(1, 2)
        return F.cross_entropy(likely, targets, reduction="none").where(in_caption, 0).sum(1)
