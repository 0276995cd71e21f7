"""Which concept, an entry of a codebook, each word and each region is nearest to.

The codebook is that of concept alignment (`train.losses.lca`) or, without it, of the concept bag. In training a
region's assignment is spread by Sinkhorn-Knopp over the batch that it is in; here it is the entry of the highest
cosine, which depends on nothing but the region.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.arrays import read_arrays, save_arrays
from manifests.errors import InputError
from train.data import RetrievalData
from train.encoding import Kind


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


@torch.inference_mode()
def region_concepts(
    model: nn.Module, data: RetrievalData, batch_size: int, images: Sequence[int] | None = None
) -> RegionConcepts | None:
    """The nearest entry of every region of `data`, or of some images' (rising); None for a model without a codebook."""
    codebook = codebook_of(model)
    if codebook is None:
        return None
    device = next(model.parameters()).device
    model.eval()
    every = range(len(data.images)) if images is None else images
    found, counts = [], np.zeros(len(data.images), np.int64)
    for first in range(0, len(every), batch_size):
        batch = list(every[first : first + batch_size])
        seen = model.encode_images(data.region_batch(batch).to(device))
        nearest = codebook.cosines(seen).argmax(dim=-1)
        found.append(nearest[seen.mask].cpu().numpy().astype(np.int32))
        counts[batch] = seen.mask.sum(1).cpu().numpy()
    return RegionConcepts(np.concatenate(found), np.cumsum([0, *counts]), len(codebook.entries))
