"""VSE-infinity's size augmentation: regions and words are left out or changed at random in training.

Chen et al., CVPR 2021, section 4.3, with the authors' shares. Of the chosen words half are masked, a tenth are replaced
by any word, the others are left out. A word is changed with all of its pieces.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from train.batches import RegionBatch, WordBatch
from train.words import Words

MASKED, REPLACED = 0.5, 0.1


def fewer_regions(batch: RegionBatch, share: float) -> RegionBatch:
    """A batch without a `share` of its regions; an image keeps one at least."""
    kept = batch.mask & (torch.rand(batch.mask.shape, device=batch.mask.device) >= share)
    first = torch.arange(kept.shape[1], device=kept.device) == 0
    return replace(batch, mask=torch.where(kept.any(1, keepdim=True), kept, first))


def noisy_words(batch: WordBatch, share: float, words: Words) -> WordBatch:
    """A batch in which a `share` of the words is masked, replaced or left out; a caption keeps one at least.

    Words without an id of their own in the loop (`words.mask_id` is None) are left out where others are masked.
    """
    drawn = torch.rand(batch.mask.shape, device=batch.mask.device).gather(1, _first_piece(batch.word))
    chosen, kind = batch.mask & (drawn < share), drawn / share
    if words.mask_id is None:
        changed, ids = torch.zeros_like(chosen), batch.words
    else:
        masked = chosen & (kind < MASKED)
        changed = chosen & (kind < MASKED + REPLACED)
        any_word = torch.randint(words.first_word, words.vocabulary_size, batch.words.shape, device=drawn.device)
        ids = torch.where(masked, words.mask_id, torch.where(changed, any_word, batch.words))
    dropped = chosen & ~changed
    dropped[:, 0] &= (batch.mask & ~dropped).any(1)
    pieces, place = batch.pieces, batch.place
    if pieces is not None:
        spare = nn.functional.pad(pieces, (0, 1))  # where padding is written
        where = place.masked_fill(~batch.mask, pieces.shape[1])
        pieces = spare.scatter(1, where, torch.where(dropped, -1, ids).to(pieces.dtype))[:, :-1]
        place = ((pieces >= 0).cumsum(1) - 1).clamp(min=0).gather(1, place)
        pieces = _forward(pieces, pieces >= 0)
    kept = batch.mask & ~dropped
    moved = {"words": ids, "pos": batch.pos, "word": batch.word, "features": batch.features, "place": place}
    moved = {name: None if x is None else _forward(x, kept) for name, x in moved.items()}
    return WordBatch(mask=_forward(kept, kept), pieces=pieces, **moved)


def _first_piece(word: Tensor) -> Tensor:
    """Where the word of each position ``[B, T]`` begins: a word's pieces stand together."""
    begins = torch.ones_like(word, dtype=torch.bool)
    begins[:, 1:] = word[:, 1:] != word[:, :-1]
    return (begins * torch.arange(word.shape[1], device=word.device)).cummax(1).values


def _forward(x: Tensor, kept: Tensor) -> Tensor:
    """``[B, N, ...]`` with each row's kept places first, in their order."""
    order = kept.byte().sort(dim=1, descending=True, stable=True).indices
    return x.gather(1, order.view(*order.shape, *[1] * (x.dim() - 2)).expand_as(x))
