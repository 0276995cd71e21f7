"""What a model reads: padded batches of regions and of words, with masks that say what is padding."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from extract.stores.regions import Regions


class _Batch:
    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{n: None if v is None else v.to(device, non_blocking=True) for n, v in values.items()})


@dataclass(frozen=True, slots=True)
class RegionBatch(_Batch):
    """Regions of B images.

    features float32 ``[B, R, F]``; boxes float32 ``[B, R, 4]``, (x1, y1, x2, y2) in original pixels; image_size
    float32 ``[B, 2]``, (width, height); mask bool ``[B, R]``, true where there is a region.
    """

    features: Tensor
    boxes: Tensor
    image_size: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class WordBatch(_Batch):
    """The words, or word pieces, of B captions.

    words int64 ``[B, T]``: ids of the vocabulary (of the tokenizer, for pieces); pos uint8 ``[B, T]``: parts of speech;
    mask bool ``[B, T]``; word int64 ``[B, T]``: which word of the caption a position belongs to; features float32
    ``[B, T, W]``: a frozen encoder's states, where they are cached. For an encoder that runs in training: pieces int64
    ``[B, P]``, whole captions with special tokens and punctuation, -1 where there is none; place int64 ``[B, T]``,
    which of them each position is.
    """

    words: Tensor
    pos: Tensor
    mask: Tensor
    word: Tensor
    features: Tensor | None = None
    pieces: Tensor | None = None
    place: Tensor | None = None


def region_batch(found: Sequence[Regions]) -> RegionBatch:
    """The regions of some images, padded to the most of them."""
    features, mask = pad([torch.tensor(r.features, dtype=torch.float32) for r in found])
    boxes, _ = pad([torch.tensor(r.boxes) for r in found])
    sizes = torch.tensor([r.image_size for r in found], dtype=torch.float32)
    return RegionBatch(features=features, boxes=boxes, image_size=sizes, mask=mask)


def pad(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences ``[n_i, ...]`` as one zero-padded tensor ``[B, max n, ...]`` and its mask ``[B, max n]``."""
    lengths = torch.tensor([len(s) for s in sequences])
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), torch.arange(lengths.max()) < lengths[:, None]
