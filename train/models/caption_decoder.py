"""VSRN's caption generation (Li et al., ICCV 2019, section 3.4): write the caption from its image's regions.

A GRU reads the contextual regions, a second one writes, attending to the first one's states at every word
(sequence to sequence, video to text: Venugopalan et al., ICCV 2015). Used in training only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CaptionDecoder(nn.Module):
    """The negative log-likelihood of captions given their images.

    Parameters
    ----------
    region_dim : D of the contextual regions.
    vocabulary_size : number of word ids; what stands at padding is 0.
    width, dim : of a word's embedding and of the hidden states.
    start, end : the ids of a caption's beginning and end.
    """

    def __init__(self, region_dim: int, vocabulary_size: int, width: int, dim: int, start: int, end: int):
        super().__init__()
        self.start, self.end = start, end
        self.reader = nn.GRU(region_dim, dim, batch_first=True)
        self.embedding = nn.Embedding(vocabulary_size, width, padding_idx=0)
        self.key, self.query, self.score = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, 1)
        self.writer = nn.GRUCell(dim + width, dim)
        self.out = nn.Linear(dim, vocabulary_size)

    def forward(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Each caption's loss ``[B]``, the mean over its words and the end.

        Parameters
        ----------
        regions ``[B, R, D]``, region_mask ``[B, R]``; words int64 ``[B, T]``, word_mask ``[B, T]``.
        """
        states, _ = self.reader(regions)
        keys = self.key(states)
        pairs = torch.arange(len(states), device=states.device)
        lengths = word_mask.sum(1)
        hidden = states[pairs, region_mask.sum(1) - 1]
        words = words.masked_fill(~word_mask, 0)
        start = words.new_full((len(words), 1), self.start)
        embedded = self.embedding(torch.cat([start, words], dim=1))
        written = []
        for step in range(embedded.shape[1]):
            energy = self.score(torch.tanh(keys + self.query(hidden)[:, None])).squeeze(-1)
            attention = energy.masked_fill(~region_mask, -torch.inf).softmax(-1)
            context = (attention[..., None] * states).sum(1)
            hidden = self.writer(torch.cat([context, embedded[:, step]], dim=-1), hidden)
            written.append(hidden)
        targets = F.pad(words, (0, 1))
        targets[pairs, lengths] = self.end
        wanted = torch.arange(targets.shape[1], device=words.device) <= lengths[:, None]
        losses = F.cross_entropy(self.out(torch.stack(written, dim=1)[wanted]), targets[wanted], reduction="none")
        share = (1 / (lengths + 1))[:, None].expand_as(wanted)[wanted]
        return losses.new_zeros(len(words)).index_add(0, pairs[:, None].expand_as(wanted)[wanted], losses * share)
