"""One split of a data set for training and evaluation, read map-style from its stores.

Which captions belong to which image comes from the manifest. Nothing is loaded but what a batch asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from extract.stores.regions import Regions, RegionStore
from extract.stores.tokens import TokenStore
from manifests.errors import InputError
from manifests.schema import ImageRow, read_manifest
from train.batches import RegionBatch, WordBatch, pad


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption: its text, its place in the caption's characters, its universal part of speech."""

    text: str
    start: int
    end: int
    pos: str


class RetrievalData:
    """The images of one split that have regions, with their captions.

    Attributes
    ----------
    images : rows of the manifest, in its order.
    caption_image : int64 ``[C]``, the index into `images` of every caption.
    left_out : ids of the split's images that the region store has no features of.

    Raises
    ------
    InputError : the stores belong to another manifest, or the split has no image.
    """

    def __init__(self, manifest: Path, regions: Path, tokens: Path, split: str):
        rows = read_manifest(manifest)
        self.region_store, self.token_store = RegionStore(regions), TokenStore(tokens)
        if self.token_store.image_ids != [row.id for row in rows]:
            raise InputError(
                "its images are not those of the manifest",
                where=tokens,
                fix="run the tokens stage of this data set again",
            )
        here = [(number, row) for number, row in enumerate(rows) if row.split == split]
        count = dict(zip(self.region_store.ids, self.region_store.num_boxes.tolist(), strict=True))
        kept = [(number, row) for number, row in here if count.get(row.id)]
        self.left_out = [row.id for _, row in here if not count.get(row.id)]
        if not kept:
            raise InputError(f"no image of split {split!r} has regions", where=manifest, fix="give the split images")
        self.images: list[ImageRow] = [row for _, row in kept]
        self._region_rows = [self.region_store.row(row.id) for row in self.images]
        captions = [self.token_store.captions_of(number) for number, _ in kept]
        self._caption_rows = [row for own in captions for row in own]
        self.caption_image = np.repeat(np.arange(len(kept)), [len(own) for own in captions])
        self._first_caption = np.cumsum([0, *(len(own) for own in captions)])

    @property
    def num_captions(self) -> int:
        return len(self._caption_rows)

    def captions_of(self, image: int) -> list[int]:
        """Indices of an image's captions, 0 to ``num_captions - 1``."""
        return list(range(*self._first_caption[image : image + 2].tolist()))

    def caption_text(self, caption: int) -> str:
        return self.token_store.text(self._caption_rows[caption])

    def caption_words(self, caption: int) -> list[Word]:
        """The words of a caption in the order of `word_batch`."""
        row = self._caption_rows[caption]
        names = self.token_store.pos_names
        return [
            Word(text, start, end, names[pos])
            for text, (start, end), pos in zip(
                self.token_store.word_texts(row),
                self.token_store.spans(row).tolist(),
                self.token_store.pos(row).tolist(),
                strict=True,
            )
        ]

    def regions(self, image: int) -> Regions:
        """The regions of an image, in the order of `region_batch`."""
        return self.region_store.regions(self._region_rows[image])

    def region_batch(self, images: Sequence[int]) -> RegionBatch:
        """The regions of some images, padded to the most of them."""
        found = [self.regions(image) for image in images]
        features, mask = pad([torch.tensor(r.features, dtype=torch.float32) for r in found])
        boxes, _ = pad([torch.tensor(r.boxes) for r in found])
        sizes = torch.tensor([r.image_size for r in found], dtype=torch.float32)
        return RegionBatch(features=features, boxes=boxes, image_size=sizes, mask=mask)

    def word_batch(self, captions: Sequence[int]) -> WordBatch:
        """The words of some captions, padded to the longest."""
        rows = [self._caption_rows[caption] for caption in captions]
        words, mask = pad([torch.tensor(self.token_store.words(row), dtype=torch.int64) for row in rows])
        pos, _ = pad([torch.tensor(self.token_store.pos(row)) for row in rows])
        word = torch.arange(words.shape[1]).expand_as(words)
        return WordBatch(words=words, pos=pos, mask=mask, word=word)
