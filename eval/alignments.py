"""ALADIN's teacher as scores to rank by: the cosines of a caption's words and an image's regions, aggregated.

The locals of a split are computed once, without padding. Scores of all pairs are made from them, some MB at a time
(`train.all_pairs.alignment_scores`): the cosines of all words with all regions are never whole.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.embed import distinct
from eval.encode import encode
from eval.scores import require_finite_scale, rounding
from manifests.files import room_for
from train.all_pairs import Aggregation, alignment_scores
from train.batches import WordBatch
from train.data import RetrievalData
from train.device import fits_on_gpu
from train.encoding import Encoding
from train.losses.loss import Loss
from train.masking import ragged_rows
from train.model import RetrievalModel

IMAGES = 64  # scored at a time
COSINES = 1 << 25  # made by one call, which holds a sixteenth of them
CHECKED = 1 << 12  # vectors at a time
EXACT_NUMBERS = 1 << 21  # float64 numbers of pairs scored one by one


@dataclass(frozen=True)
class Locals:
    """Regions of N images, or words of N captions: item n has `vectors[first[n] : first[n] + count[n]]`.

    `vectors [M, D]` float32, on any device; `first`, `count` int64 `[N]`; equal items may share their vectors. They are
    compared on `device`, the vectors' own where it is None.
    """

    vectors: Tensor
    first: np.ndarray
    count: np.ndarray
    device: torch.device | None = None

    def __len__(self) -> int:
        return len(self.first)

    def padded(self, items: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """The vectors `[B, N, D]` of some items, and where there are any `[B, N]`."""
        rows, mask = ragged_rows(*(np.ascontiguousarray(column[items]) for column in (self.first, self.count)))
        device = self.device or self.vectors.device
        mask = mask.to(device)
        return self.vectors[rows.to(self.vectors.device)].to(device) * mask[..., None], mask

    def part(self, items: slice) -> "Locals":
        return Locals(self.vectors, self.first[items], self.count[items], self.device)


class Alignments:
    """`eval.scores.Scores` of N images' regions and C captions' words, of any length: cosines are taken.

    Parameters
    ----------
    aggregation : of a pair's cosines (`train.all_pairs.alignment_scores`).
    """

    views = 1

    def __init__(self, regions: Locals, words: Locals, aggregation: Aggregation = "MrSw"):
        self.regions, self.words, self.aggregation = regions, words, aggregation
        self.num_images, self.num_captions = len(regions), len(words)
        self._most_words, most_regions = int(words.count.max()), int(regions.count.max())
        most = {"MrSw": self._most_words, "MwSr": most_regions, "symm": self._most_words + most_regions}
        most |= {"sum": self._most_words * most_regions}
        self._added = self._most_words + most_regions  # cosines of a score whose errors add up, at most
        finite = all(bool(part.isfinite().all()) for side in (regions, words) for part in side.vectors.split(CHECKED))
        self.largest = require_finite_scale(1.001 * most.get(aggregation, 1) if finite else np.inf)

    def tolerance(self, precision: torch.dtype) -> float:
        """The most by which a `block` is off: the errors of a pair's cosines, added up."""
        return rounding(self.words.vectors.shape[1] + self._added, self.largest, precision)

    @torch.inference_mode()
    def block(self, images: slice, captions: slice, precision: torch.dtype = torch.float32) -> np.ndarray:
        """The scores `[I, C]` of some images and captions; float64 for float64, otherwise float32."""
        images, captions = (
            range(*part.indices(n)) for part, n in ((images, len(self.regions)), (captions, len(self.words)))
        )
        found = np.empty((len(images), len(captions)), np.float64 if precision == torch.float64 else np.float32)
        for top in range(0, len(images), IMAGES):
            regions, region_mask = self.regions.padded(np.array(images[top : top + IMAGES]))
            regions = regions.to(precision)
            step = max(1, COSINES // (region_mask.numel() * self._most_words))
            for left in range(0, len(captions), step):
                words, word_mask = self.words.padded(np.array(captions[left : left + step]))
                scores = alignment_scores(regions, words.to(precision), region_mask, word_mask, self.aggregation)
                found[top : top + IMAGES, left : left + step] = scores.cpu().numpy()
        return found

    @torch.inference_mode()
    def exact(self, images: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """The scores of M pairs in float64, `[M]`."""
        found = np.empty(len(images))
        each = (int(self.regions.count.max()) + self._most_words) * self.words.vectors.shape[1]
        step = max(1, EXACT_NUMBERS // each)
        for start in range(0, len(images), step):
            part = slice(start, start + step)
            (regions, region_mask), (words, word_mask) = (
                side.padded(items[part]) for side, items in ((self.regions, images), (self.words, captions))
            )
            regions, words = (torch.nn.functional.normalize(x.cpu().double(), dim=-1) for x in (regions, words))
            found[part] = self._aggregated(words @ regions.transpose(1, 2), word_mask.cpu(), region_mask.cpu()).numpy()
        return found

    def _aggregated(self, cosines: Tensor, word_mask: Tensor, region_mask: Tensor) -> Tensor:
        """`[M]` of M pairs' cosines `[M, T, R]`."""
        there = word_mask[:, :, None] & region_mask[:, None]
        if self.aggregation in ("sum", "mean"):
            total = (cosines * there).sum((1, 2))
            return total / there.sum((1, 2)) if self.aggregation == "mean" else total
        best = cosines.masked_fill(~there, 0).clamp(min=0)
        of_words, of_regions = best.amax(2).sum(1), best.amax(1).sum(1)
        return {
            "MrSw": of_words,
            "MrAVGw": of_words / word_mask.sum(1),
            "MwSr": of_regions,
            "symm": of_words + of_regions,
        }[self.aggregation]

    def part(self, images: slice, captions: slice) -> "Alignments":
        """The scores of some images and captions only."""
        return Alignments(self.regions.part(images), self.words.part(captions), self.aggregation)


def embed_locals(model: RetrievalModel, data: RetrievalData, batch_size: int, *, quiet: bool = False) -> Alignments:
    """The word-region scores of `data` by a model with ALADIN, in evaluation mode."""
    found = LocalsCollector(model.alignment, data)
    encode(model, data, batch_size, [found], quiet=quiet)
    return found.alignments()


class LocalsCollector:
    """Collects what ALADIN's teacher compares, in a temporary file (below TMPDIR): it isn't held in memory.

    Of equal contents the first one's count, as in `eval.embed`.
    """

    def __init__(self, alignment: Loss, data: RetrievalData):
        self._alignment, self._data = alignment, data
        self._regions, self._words = _Passing(len(data.images)), _Passing(data.num_captions)

    def images(self, images: Sequence[int], seen: Encoding) -> None:
        self._regions.add(images, self._alignment.locals(seen), seen.mask)

    def captions(
        self, captions: Sequence[int], batch: WordBatch, read: Encoding, seen: Encoding, place: Tensor
    ) -> None:
        self._words.add(captions, self._alignment.locals(read), read.mask)

    def alignments(self) -> Alignments:
        """The scores of all images and captions, once they have passed."""
        data = self._data
        texts = [data.caption_text(caption) for caption in range(data.num_captions)]
        regions = self._regions.locals(distinct([image.sha256 for image in data.images], "images"))
        return Alignments(regions, self._words.locals(distinct(texts, "captions")), self._alignment.options.aggregation)


class _Passing:
    """Vectors that are written to a file as they pass."""

    def __init__(self, items: int):
        self._first, self._count, self._rows = np.zeros(items, np.int64), np.zeros(items, np.int64), 0
        self._file = tempfile.TemporaryFile(prefix="selfalign-locals-")  # noqa: SIM115 (the map keeps it)
        self._device, self._dim = torch.device("cpu"), 0

    def add(self, items: Sequence[int], vectors: Tensor, mask: Tensor) -> None:
        """Those of some items, ``[B, N, D]`` where `mask` ``[B, N]`` is true."""
        own, count = vectors[mask].float().cpu().numpy(), mask.sum(1).cpu().numpy()
        self._first[items], self._count[items] = self._rows + count.cumsum() - count, count
        self._rows, self._dim, self._device = self._rows + len(own), own.shape[1], vectors.device
        with room_for(Path(tempfile.gettempdir())):
            self._file.write(memoryview(np.ascontiguousarray(own)).cast("B"))

    def locals(self, first: np.ndarray) -> Locals:
        """Those of all items; item n has those of item ``first[n]``. On a GPU where they take less than half of it."""
        self._file.flush()
        vectors = torch.from_numpy(np.memmap(self._file, np.float32, "r+", shape=(self._rows, self._dim)))
        if fits_on_gpu(self._device, vectors.nbytes):
            vectors = vectors.to(self._device)
        return Locals(vectors, self._first[first], self._count[first], self._device)
