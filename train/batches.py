"""What a model reads: padded batches of regions and of words, with masks that say what is padding."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from extract.stores.regions import Regions
from extract.text.pieces import Pieces


class _Batch:
    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{n: None if v is None else v.to(device, non_blocking=True) for n, v in values.items()})


class _Features(_Batch):
    def widened(self) -> Self:
        """The same batch, features in float32 at least: the stores keep float16."""
        if self.features is None or self.features.dtype != torch.float16:
            return self
        return replace(self, features=self.features.float())


@dataclass(frozen=True, slots=True)
class RegionBatch(_Features):
    """Regions of B images.

    `features` is float16 (as stored) or float32 ``[B, R, F]``, or None where they lie on the device. `boxes` is
    float32 ``[B, R, 4]``, (x1, y1, x2, y2) in original pixels. `image_size` is float32 ``[B, 2]``, (width, height).
    `mask` is bool ``[B, R]``, true where there is a region.
    """

    features: Tensor | None
    boxes: Tensor
    image_size: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class WordBatch(_Features):
    """The words, or word pieces, of B captions.

    `words` int64 ``[B, T]`` has ids of the vocabulary (of the tokenizer, for pieces). `pos` uint8 ``[B, T]`` has parts
    of speech, `mask` bool ``[B, T]`` is true where there is a word. `word` int64 ``[B, T]`` is the number of the
    caption's word at a position. `features` float16 or float32 ``[B, T, W]`` are a frozen encoder's cached states.

    An encoder that runs in training reads `pieces` int64 ``[B, P]``, whole captions with special tokens and
    punctuation, -1 at padding. `place` int64 ``[B, T]`` is each position's place among them.
    """

    words: Tensor
    pos: Tensor
    mask: Tensor
    word: Tensor
    features: Tensor | None = None
    pieces: Tensor | None = None
    place: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TeacherBatch(_Batch):
    """What uni-modal teachers make of B pairs: images float32 ``[B, Wv]``, captions ``[B, Wt]``, of length 1."""

    images: Tensor
    captions: Tensor


def region_batch(found: Sequence[Regions]) -> RegionBatch:
    """The regions of some images, padded to the most of them."""
    features, mask = pad([r.features for r in found])
    boxes, _ = pad([r.boxes for r in found])
    sizes = torch.tensor([r.image_size for r in found], dtype=torch.float32)
    return RegionBatch(features=features, boxes=boxes, image_size=sizes, mask=mask)


def word_batch(words: Sequence[np.ndarray], pos: Sequence[np.ndarray]) -> WordBatch:
    """The words of B captions: for each, ids of the vocabulary i32 ``[T]`` and parts of speech u8 ``[T]``."""
    ids, mask = pad(words)
    word = torch.arange(ids.shape[1]).expand_as(ids)
    return WordBatch(words=ids.long(), pos=pad(pos)[0], mask=mask, word=word)


def piece_batch(pieces: Sequence[Pieces], pos: Sequence[np.ndarray]) -> WordBatch:
    """The word pieces of B captions that belong to a word; `pos` has the parts of speech u8 ``[T]`` of the T words.

    A caption of which no piece belongs to a word has an empty row of the mask.
    """
    ids, word = (np.concatenate(column).astype(np.int64) for column in zip(*pieces, strict=True))
    caption, piece = _places([len(own.ids) for own in pieces])
    whole = np.full((len(pieces), piece.max(initial=-1) + 1), -1)
    whole[caption, piece] = ids
    kept = word >= 0
    counts = np.bincount(caption[kept], minlength=len(pieces))
    first_tag = np.cumsum([0, *map(len, pos)])[caption[kept]]
    at = _places(counts)
    mask = torch.arange(int(counts.max())) < torch.from_numpy(counts)[:, None]
    columns = {"words": ids[kept], "word": word[kept], "place": piece[kept]}
    columns["pos"] = np.concatenate(pos)[first_tag + word[kept]]
    padded = {name: np.zeros(mask.shape, column.dtype) for name, column in columns.items()}
    for name, column in columns.items():
        padded[name][at] = column
    made = {name: torch.from_numpy(column) for name, column in padded.items()}
    return WordBatch(mask=mask, pieces=torch.from_numpy(whole), **made)


def _places(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column ``[sum]`` of every item of a padded table whose rows hold so many items."""
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum([0, *counts[:-1]]), counts)


def pad(arrays: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Arrays ``[n_i, ...]`` as one zero-padded tensor ``[B, max n, ...]`` and its mask ``[B, max n]``."""
    lengths = np.array([len(array) for array in arrays])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*mask.shape, *arrays[0].shape[1:]), arrays[0].dtype)
    padded[mask] = np.concatenate(arrays)
    return torch.from_numpy(padded), torch.from_numpy(mask)
