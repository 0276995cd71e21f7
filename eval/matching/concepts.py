"""Which concept, an entry of a codebook, each word and each region is nearest to.

The codebook is that of concept alignment (`train.losses.lca`) or, without it, of the concept bag. In training
Sinkhorn-Knopp spreads a region's assignment over its batch. Here it is the entry of the highest cosine, which depends
on the region alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from eval.arrays import read_arrays, save_arrays
from manifests.errors import InputError
from train.batches import WordBatch
from train.data import RetrievalData
from train.encoding import Encoding, Kind


class Encoded(Protocol):
    """What is read of `train.encoding.Encoding`."""

    def unit(self, kind: Kind) -> Tensor: ...


@dataclass(frozen=True)
class Codebook:
    """The entries `[K, D]`, of unit length, and the kind of locals that they were trained on."""

    entries: Tensor
    kind: Kind

    def cosines(self, encoded: Encoded) -> Tensor:
        """Of every region or word of a batch with every entry: `[B, N, K]`."""
        return encoded.unit(self.kind) @ self.entries.T


def codebook_of(model: nn.Module) -> Codebook | None:
    """The codebook of a model; None where it has none, or only the bag's control without one."""
    lca = dict(model.losses).get("lca")
    if lca is not None:
        return Codebook(F.normalize(lca.codebook.detach(), dim=-1), lca.options.locals)
    if model.bag is not None and model.bag.codebook is not None:
        return Codebook(F.normalize(model.bag.codebook.detach(), dim=-1), "projected")
    return None


@dataclass(frozen=True)
class RegionConcepts:
    """The concept of every region of a split: `concept [sum of R]`, image i's at `first[i]` to `first[i + 1] - 1`;
    `size` is K."""

    concept: np.ndarray
    first: np.ndarray
    size: int

    def of(self, image: int) -> np.ndarray:
        """The concepts `[R]` of one image's regions."""
        return self.concept[self.first[image] : self.first[image + 1]]

    def save(self, path: Path) -> None:
        """Write one `.npz` file."""
        save_arrays(path, {"concept": self.concept, "first": self.first, "size": np.array(self.size)})

    @classmethod
    def read(cls, path: Path, *, fix: str) -> Self:
        """What `save` wrote. Raises InputError, with `fix`, where it isn't whole."""
        found = read_arrays(path, {"concept": ("i", 1), "first": ("i", 1), "size": ("i", 0)}, fix=fix)
        concept, first, size = found["concept"], found["first"], int(found["size"])
        rising = len(first) and first[0] == 0 and first[-1] == len(concept) and (first[1:] >= first[:-1]).all()
        if not rising or not ((concept >= 0) & (concept < size)).all():
            raise InputError(f"it hasn't one of {size} concepts for every region", where=path, fix=fix)
        return cls(concept, first, size)


class ConceptCollector:
    """Collects the nearest entry of every region that passes."""

    def __init__(self, data: RetrievalData, codebook: Codebook):
        self._codebook, self._counts = codebook, np.zeros(len(data.images), np.int64)
        self._found: list[np.ndarray] = []

    def images(self, images: Sequence[int], seen: Encoding) -> None:
        nearest = self._codebook.cosines(seen).argmax(dim=-1)
        self._found.append(nearest[seen.mask].cpu().numpy().astype(np.int32))
        self._counts[images] = seen.mask.sum(1).cpu().numpy()

    def captions(
        self, captions: Sequence[int], batch: WordBatch, read: Encoding, seen: Encoding, place: Tensor
    ) -> None:
        """Words have theirs from `eval.matching.correspondence`."""

    def concepts(self) -> RegionConcepts:
        """Those of all images, once they have passed."""
        return RegionConcepts(np.concatenate(self._found), np.cumsum([0, *self._counts]), len(self._codebook.entries))
