"""Which region each word of a caption matches, and how often that is the object which the word means.

A word matches the region of its image with the highest cosine between the unit-length locals of the encoders (words
and regions as projected, before they see their context): the correspondence that the concept-level loss is built on
(docs/method.md). A word of several pieces has the mean of their cosines; one whose pieces were all cut off
matches none. Where the data set says which object a word means (`manifests.grounding`), the match is
right if, of all true objects, that one overlaps the region most and by an IoU of at least 0.5. Chance is the expected
accuracy of picking a region of the image uniformly; the ceiling is the share of words with any right region.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from manifests.grounding import Grounding, Phrase
from manifests.progress import progress
from train.data import RetrievalData

RIGHT_IOU = 0.5


@dataclass(frozen=True)
class Matches:
    """Every word of every caption of a split that has a region, one row a word, captions in order.

    `caption [W]` index in the split, `start [W]`, `end [W]` characters in the caption's text, `region [W]` row in the
    image's regions, `cosine [W]` float32.
    """

    caption: np.ndarray
    start: np.ndarray
    end: np.ndarray
    region: np.ndarray
    cosine: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns by name, as they are stored in `matches.npz`."""
        return {name: getattr(self, name) for name in ("caption", "start", "end", "region", "cosine")}

    def rows(self, caption: int) -> range:
        """The rows of one caption."""
        low, high = np.searchsorted(self.caption, (caption, caption + 1))
        return range(int(low), int(high))


def read_matches(path: Path) -> Matches:
    """Read a `matches.npz`."""
    with np.load(path) as stored:
        return Matches(**{name: stored[name] for name in ("caption", "start", "end", "region", "cosine")})


def word_regions(
    regions: torch.Tensor,
    region_mask: torch.Tensor,
    words: torch.Tensor,
    word_mask: torch.Tensor,
    word: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best region of each word: `(index i64 [B, W], cosine [B, W])`; of equal regions the first.

    `regions [B, R, D]` and `words [B, T, D]` have unit length; pair b is caption b with its own image; the masks
    `[B, R]` and `[B, T]` are true for what is real. `words` may be pieces: `word i64 [B, T]` says of which of the W
    words each is. The cosine of a word without pieces is NaN.
    """
    cosine = words @ regions.transpose(1, 2)
    count = int(word.max()) + 1
    word = torch.where(word_mask, word, count)  # padding is a word of its own, which is dropped
    sums = cosine.new_zeros(len(word), count + 1, cosine.shape[2])
    sums.scatter_add_(1, word[..., None].expand_as(cosine), cosine)
    pieces = torch.zeros_like(sums[..., 0]).scatter_add_(1, word, torch.ones_like(cosine[..., 0]))
    cosine = (sums / pieces[..., None])[:, :count]
    cosine = cosine.masked_fill(~region_mask[:, None, :], float("-inf"))
    best = cosine.amax(dim=-1)
    return (cosine == best[..., None]).to(torch.uint8).argmax(dim=-1), best


@torch.inference_mode()
def match_words(model: nn.Module, data: RetrievalData, batch_size: int) -> Matches:
    """Match every word of every caption in `data` with a region of the caption's own image."""
    device = next(model.parameters()).device
    model.eval()
    columns: list[tuple[int, int, int, int, float]] = []
    for first in progress(range(0, data.num_captions, batch_size), what="match words", unit="batches"):
        captions = range(first, min(first + batch_size, data.num_captions))
        images, place = np.unique(data.caption_image[captions.start : captions.stop], return_inverse=True)
        seen = model.encode_images(data.region_batch([int(image) for image in images]).to(device))
        batch = data.word_batch(list(captions)).to(device)
        read = model.encode_captions(batch)
        place = torch.as_tensor(place, device=device)
        regions, cosines = word_regions(seen.locals[place], seen.mask[place], read.locals, batch.mask, batch.word)
        regions, cosines = regions.cpu().numpy(), cosines.float().cpu().numpy()
        for row, caption in enumerate(captions):
            here = np.flatnonzero(~np.isnan(cosines[row]))
            words = data.caption_words(caption)
            for number in here:
                word = words[number]
                columns.append((caption, word.start, word.end, regions[row, number], cosines[row, number]))
    caption, start, end, region, cosine = zip(*columns, strict=True) if columns else ((),) * 5
    return Matches(
        *(np.array(column, np.int32) for column in (caption, start, end, region)), np.array(cosine, np.float32)
    )


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


def accuracy(matches: Matches, data: RetrievalData, grounding: Mapping[str, Grounding]) -> dict | None:
    """How often words match the object that they mean, over all and for each kind of phrase.

    Returns `{accuracy, chance, ceiling, fitting, fitting_chance, words, kinds: {kind: {the same six}}}`, shares rounded
    to four places; None if no word of the split has a known object. `fitting` is the share of words whose region shows
    any object that the word is true of: of two red objects a word without its context can't tell which one is meant.
    """
    scored: dict[str, list[tuple[float, ...]]] = {}
    objects: dict[int, np.ndarray] = {}
    for caption in range(data.num_captions):
        image = int(data.caption_image[caption])
        truth = grounding.get(data.images[image].id)
        if truth is None:
            continue
        if image not in objects:
            objects[image] = region_objects(data.regions(image).boxes, np.array(truth.boxes, float).reshape(-1, 4))
        phrases = truth.phrases[data.captions_of(image).index(caption)]
        for row in matches.rows(caption):
            phrase = phrase_of(int(matches.start[row]), int(matches.end[row]), phrases)
            if phrase is not None:
                right = objects[image] == phrase.object
                fitting = np.isin(objects[image], _alike(truth, phrase))
                region = matches.region[row]
                scored.setdefault(phrase.kind, []).append(
                    (right[region], right.mean(), right.any(), fitting[region], fitting.mean())
                )
    if not scored:
        return None
    every = [word for words in scored.values() for word in words]
    return _shares(every) | {"kinds": {kind: _shares(words) for kind, words in sorted(scored.items())}}


def _alike(truth: Grounding, phrase: Phrase) -> list[int]:
    """The objects that a phrase is true of: those with its object's label of the phrase's kind."""
    if phrase.kind not in truth.labels[phrase.object]:
        return [phrase.object]
    label = truth.labels[phrase.object][phrase.kind]
    return [number for number, labels in enumerate(truth.labels) if labels.get(phrase.kind) == label]


def _shares(words: list[tuple[float, ...]]) -> dict[str, float | int]:
    names = ("accuracy", "chance", "ceiling", "fitting", "fitting_chance")
    means = np.array(words, float).mean(axis=0)
    return {name: round(float(mean), 4) for name, mean in zip(names, means, strict=True)} | {"words": len(words)}
