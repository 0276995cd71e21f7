"""Which region each word of a caption matches, and how often that is the object which the word means.

A word matches the region of its image with the highest cosine between unit-length locals of the encoders. Words and
regions are as projected, before they see their context: the concept-level loss is built on that (docs/method.md). A
word of several pieces has the mean of their cosines; one whose pieces were all cut off matches none. Some data sets say
which object a word means (`manifests.grounding`). There a match is right if of all true objects that one overlaps the
region most, and by an IoU of at least 0.5. Chance is the expected accuracy of picking a region of the image uniformly;
the ceiling is the share of words with any right region. A colour shows in a part of an object as well as in all of it.
So the pointing game (Zhang et al., ECCV 2016) asks only that the region's centre lie in an object that the word is true
of.

Where the model has a codebook, each word also has its concept (`eval.matching.concepts`), from its pieces likewise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.arrays import read_arrays
from eval.encode import encode
from eval.matching.concepts import Codebook, codebook_of
from manifests.errors import InputError
from manifests.grounding import Grounding, Phrase
from train.batches import WordBatch
from train.data import RetrievalData, Word
from train.encoding import Encoding

RIGHT_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """Every word of every caption of a split that has a region, one row a word, captions in order.

    `caption [W]` is an index in the split, `start [W]` and `end [W]` are characters in the caption's text. `region [W]`
    is a row in the image's regions, `cosine [W]` float32, `concept [W]` the nearest entry of the codebook, −1 where
    there is none.
    """

    caption: np.ndarray
    start: np.ndarray
    end: np.ndarray
    region: np.ndarray
    cosine: np.ndarray
    concept: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns by name, as they are stored in `matches.npz`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def rows(self, caption: int) -> range:
        """The rows of one caption."""
        low, high = np.searchsorted(self.caption, (caption, caption + 1))
        return range(int(low), int(high))


def read_matches(path: Path, *, fix: str) -> Matches:
    """Read a `matches.npz`. Raises InputError, with `fix`, where it isn't whole."""
    kinds = {field.name: ("f" if field.name == "cosine" else "i", 1) for field in fields(Matches)}
    found = Matches(**read_arrays(path, kinds, fix=fix))
    if len({len(column) for column in found.arrays().values()}) > 1 or (np.diff(found.caption) < 0).any():
        raise InputError("its columns aren't those of one table, captions in order", where=path, fix=fix)
    return found


def word_regions(
    regions: torch.Tensor,
    region_mask: torch.Tensor,
    words: torch.Tensor,
    word_mask: torch.Tensor,
    word: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best region of each word: `(index i64 [B, W], cosine [B, W])`; of equal regions the first.

    `regions [B, R, D]` and `words [B, T, D]` have unit length. Pair b is caption b with its own image. The masks
    `[B, R]` and `[B, T]` are false at padding. `words` may be pieces: `word i64 [B, T]` is then the number of each
    one's word, below W. The cosine of a word without pieces is NaN.
    """
    cosine = by_word(words @ regions.transpose(1, 2), word_mask, word)
    cosine = cosine.masked_fill(~region_mask[:, None, :], float("-inf"))
    best = cosine.amax(dim=-1)
    return (cosine == best[..., None]).to(torch.uint8).argmax(dim=-1), best


def by_word(pieces: torch.Tensor, mask: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
    """The mean over each word's pieces: `[B, T, X]` to `[B, W, X]`, NaN for a word without any."""
    count = int(word.max()) + 1
    word = torch.where(mask, word, count)  # padding is a word of its own, which is dropped
    sums = pieces.new_zeros(len(word), count + 1, pieces.shape[2])
    sums.scatter_add_(1, word[..., None].expand_as(pieces), pieces)
    counts = torch.zeros_like(sums[..., 0]).scatter_add_(1, word, torch.ones_like(pieces[..., 0]))
    return (sums / counts[..., None])[:, :count]


def match_words(
    model: nn.Module, data: RetrievalData, batch_size: int, captions: Sequence[int] | None = None
) -> Matches:
    """Match every word of every caption in `data`, or of some `captions` (rising), with a region of its own image."""
    found = WordMatcher(data, codebook_of(model))
    encode(model, data, batch_size, [found], captions=captions)
    return found.matches()


class WordMatcher:
    """Matches the words of the captions that pass; `codebook` gives them concepts, where there is one."""

    def __init__(self, data: RetrievalData, codebook: Codebook | None):
        self._data, self._codebook = data, codebook
        self._columns: list[tuple[int, int, int, int, float, int]] = []

    def images(self, images: Sequence[int], seen: Encoding) -> None:
        """Their captions come later."""

    def captions(
        self, captions: Sequence[int], batch: WordBatch, read: Encoding, seen: Encoding, place: torch.Tensor
    ) -> None:
        regions, cosines = word_regions(seen.locals[place], seen.mask[place], read.locals, batch.mask, batch.word)
        regions, cosines = regions.cpu().numpy(), cosines.float().cpu().numpy()
        concepts = np.full_like(regions, -1)
        if self._codebook is not None:
            concepts = by_word(self._codebook.cosines(read), batch.mask, batch.word).argmax(dim=-1).cpu().numpy()
        for row, caption in enumerate(captions):
            words = self._data.caption_words(caption)
            for number in np.flatnonzero(~np.isnan(cosines[row])):
                word = words[number]
                found = regions[row, number], cosines[row, number], concepts[row, number]
                self._columns.append((caption, word.start, word.end, *found))

    def matches(self) -> Matches:
        """Those of all captions, once they have passed."""
        caption, start, end, region, cosine, concept = zip(*self._columns, strict=True) if self._columns else ((),) * 6
        whole = (np.array(column, np.int32) for column in (caption, start, end, region))
        return Matches(*whole, np.array(cosine, np.float32), np.array(concept, np.int32))


def row_words(matches: Matches, data: RetrievalData) -> list[Word]:
    """The word of every row of `matches`."""
    found: list[Word] = []
    for caption in np.unique(matches.caption).tolist():
        words = {word.start: word for word in data.caption_words(caption)}
        found += [words[int(matches.start[row])] for row in matches.rows(caption)]
    return found


def phrase_of(start: int, end: int, phrases: Sequence[Phrase]) -> Phrase | None:
    """The phrase that shares the most characters with a word at `[start, end)`; None if none shares any."""
    shared = [min(end, phrase.end) - max(start, phrase.start) for phrase in phrases]
    best = int(np.argmax(shared)) if shared else -1
    return phrases[best] if shared and shared[best] > 0 else None


def region_objects(regions: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The true object of each region, `i64 [R]`: the one of highest IoU; −1 where that is below 0.5.

    Both `[*, 4]` as x1, y1, x2, y2.
    """
    if not len(objects) or not len(regions):
        return np.full(len(regions), -1)
    overlap = iou(regions, objects)
    return np.where(overlap.max(axis=1) >= RIGHT_IOU, overlap.argmax(axis=1), -1)


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `[A, 4]` and `[B, 4]`: `[A, B]`."""
    first, second = np.asarray(first, float)[:, None], np.asarray(second, float)[None]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(axis=-1) + (second[..., 2:] - second[..., :2]).prod(axis=-1)
    return shared / np.maximum(areas - shared, 1e-12)


def centred(regions: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Whether the centres of boxes `[A, 4]` lie in boxes `[B, 4]`: bool `[A, B]`."""
    regions, objects = np.asarray(regions, float), np.asarray(objects, float)
    centres = (regions[:, None, :2] + regions[:, None, 2:]) / 2
    return ((objects[None, :, :2] <= centres) & (centres <= objects[None, :, 2:])).all(axis=-1)


FIGURES = ("accuracy", "chance", "ceiling", "fitting", "fitting_chance", "pointing", "pointing_chance")


@dataclass(frozen=True)
class Judged:
    """What the truth says of every row of some matches.

    `kind [W]` is the kind of phrase that the word belongs to, "" where none is known. `figures [W, 7]` has, for those
    with a kind, the columns of `FIGURES`. Three are of the object meant: whether the region shows it, the share of the
    image's regions that do, whether any does. Two are of any object that the word is true of: whether the region shows
    one, the share of regions that do. Two say the same of a region whose centre lies in such an object.
    """

    kind: np.ndarray
    figures: np.ndarray

    @cached_property
    def known(self) -> np.ndarray:
        """The rows with a kind, bool `[W]`."""
        return self.kind != ""


def judge(matches: Matches, data: RetrievalData, grounding: Mapping[str, Grounding]) -> Judged:
    """Hold every match against the truth."""
    kinds, figures = np.full(len(matches.caption), "", "U16"), np.zeros((len(matches.caption), len(FIGURES)))
    places: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for caption in np.unique(matches.caption).tolist():
        image = int(data.caption_image[caption])
        truth = grounding.get(data.images[image].id)
        if truth is None:
            continue
        own = data.captions_of(image)
        if len(truth.phrases) != len(own):
            raise InputError(
                f"it tells of {len(truth.phrases)} captions, the manifest of {len(own)}",
                where=f"grounding.jsonl, image {truth.image_id!r}",
                fix="run the manifest stage again",
            )
        if image not in places:
            boxes, true = data.regions(image).boxes, np.array(truth.boxes, float).reshape(-1, 4)
            places[image] = region_objects(boxes, true), centred(boxes, true)
        objects, centres = places[image]
        phrases = truth.phrases[own.index(caption)]
        for row in matches.rows(caption):
            phrase = phrase_of(int(matches.start[row]), int(matches.end[row]), phrases)
            if phrase is not None:
                alike, region = _alike(truth, phrase), matches.region[row]
                right, fitting = objects == phrase.object, np.isin(objects, alike)
                pointing = centres[:, alike].any(axis=1)
                kinds[row] = phrase.kind
                figures[row, :3] = right[region], right.mean(), right.any()
                figures[row, 3:] = fitting[region], fitting.mean(), pointing[region], pointing.mean()
    return Judged(kinds, figures)


def accuracy(matches: Matches, data: RetrievalData, grounding: Mapping[str, Grounding]) -> dict | None:
    """`summary` of what `judge` says."""
    return summary(judge(matches, data, grounding))


def summary(judged: Judged) -> dict | None:
    """How often words match the object that they mean, over all and for each kind of phrase.

    Returns `{**FIGURES, words, kinds: {kind: {the same}}}`, shares rounded to four places; None if no word of the split
    has a known object. `fitting` is the share of words whose region shows any object that the word is true of. Of two
    red objects a word without its context can't tell which one is meant. `pointing` lets parts of an object count.
    """
    if not judged.known.any():
        return None
    kinds = sorted(set(judged.kind[judged.known].tolist()))
    return shares(judged, judged.known) | {"kinds": {kind: shares(judged, judged.kind == kind) for kind in kinds}}


def shares(judged: Judged, rows: np.ndarray) -> dict[str, float | int]:
    """`FIGURES` over some rows, bool `[W]`, all of them known, and how many `words` they are."""
    means = judged.figures[rows].mean(axis=0)
    found = {name: round(float(mean), 4) for name, mean in zip(FIGURES, means, strict=True)}
    return found | {"words": int(rows.sum())}


def _alike(truth: Grounding, phrase: Phrase) -> list[int]:
    """The objects that a phrase is true of: those with its object's label of the phrase's kind."""
    if phrase.kind not in truth.labels[phrase.object]:
        return [phrase.object]
    label = truth.labels[phrase.object][phrase.kind]
    return [number for number, labels in enumerate(truth.labels) if labels.get(phrase.kind) == label]
