"""One split of a data set for training and evaluation, read map-style from its stores.

Which captions belong to which image comes from the manifest. Nothing is loaded but what a batch asks for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from extract.stores.intact import require_intact
from extract.stores.regions import Regions, RegionStore
from extract.stores.teachers import TeacherStore
from extract.stores.text_features import TextFeatureStore
from extract.stores.tokens import TokenStore
from extract.text.vocabulary import BOUNDARY_IDS
from manifests.errors import InputError
from manifests.schema import ImageRow
from manifests.tables import Manifest
from train.batches import RegionBatch, TeacherBatch, WordBatch, pad, piece_batch, word_batch

Memory = Callable[[int, np.dtype], np.ndarray]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption: its text, its place in the caption's characters, its universal part of speech."""

    text: str
    start: int
    end: int
    pos: str


class RetrievalData:
    """The images of one split that have regions, with their captions.

    With `streamed`, the regions are streamed (`train.stream`) and no image is left out; the region store of another
    split may say what they are.

    Parameters
    ----------
    regions : the folder of the data set's region stores, of which that of `split` is read
        (`extract.stores.regions.region_stores`), or the open stores of any splits.

    Attributes
    ----------
    images : rows of the manifest, in its order.
    caption_image : int64 ``[C]``, the index into `images` of every caption.
    left_out : ids of the split's images that the region store has no features of.
    pieces : whether `word_batch` gives word pieces; it does where `text_features`, the folder of a text feature store,
        is given too.
    vocabulary_size, boundary_ids : how many ids words or pieces have, and which of them are a caption's start and end.
    text_dim : of the text features; None without.
    teacher_store : of soft labels, where `teachers`, the folder of one, is given; else None.

    Raises
    ------
    InputError : the stores belong to another manifest, a file of theirs has changed, there are no word pieces, or the
        split has no image.
    """

    def __init__(
        self,
        manifest: Path,
        regions: Path | RegionStore,
        tokens: Path,
        split: str,
        *,
        pieces: bool = False,
        text_features: Path | None = None,
        teachers: Path | None = None,
        streamed: bool = False,
    ):
        listed = Manifest.open(manifest)
        if not isinstance(regions, RegionStore):
            regions = RegionStore(regions, None if streamed else split)
        for store in (*regions.folders, tokens, text_features, teachers):
            if store is not None:
                require_intact(store)
        self.region_store, self.token_store = regions, TokenStore(tokens)
        if self.token_store.image_ids != listed.ids:
            raise InputError(
                "its images are not those of the manifest",
                where=tokens,
                fix="run the tokens stage of this data set again",
            )
        self.text_store = TextFeatureStore(text_features) if text_features else None
        if self.text_store:
            self.text_store.require_tokens(self.token_store)
        self.pieces = pieces or self.text_store is not None
        self.text_dim = self.text_store.dim if self.text_store else None
        self.vocabulary_size, self.boundary_ids = len(self.token_store.vocabulary), BOUNDARY_IDS
        if self.pieces:
            tokenizer = self.token_store.require_tokenizer()
            self.vocabulary_size, self.boundary_ids = tokenizer["size"], (tokenizer["start_id"], tokenizer["end_id"])
        asked = listed.rows_in(split)
        here = list(zip(asked.tolist(), listed.images_at(asked), strict=True))
        count = dict(zip(self.region_store.ids, self.region_store.num_boxes.tolist(), strict=True))
        kept = [(number, row) for number, row in here if streamed or count.get(row.id)]
        self.left_out = [] if streamed else [row.id for _, row in here if not count.get(row.id)]
        if not kept:
            raise InputError(f"no image of split {split!r} has regions", where=manifest, fix="give the split images")
        self.images: list[ImageRow] = [row for _, row in kept]
        self._region_rows = [] if streamed else [self.region_store.row(row.id) for row in self.images]
        self.teacher_store = TeacherStore(teachers) if teachers else None
        self.image_rows = np.array([number for number, _ in kept])
        if self.teacher_store:
            self.teacher_store.require_manifest(manifest)
            self._require_taught(self.teacher_store)
        first = self.token_store.first_caption
        counts = first[self.image_rows + 1] - first[self.image_rows]
        self.caption_image = np.repeat(np.arange(len(kept)), counts)
        self._first_caption = np.concatenate(([0], np.cumsum(counts)))
        # Its number in the token store: that of its image's first caption, and its place among the image's.
        places = np.arange(len(self.caption_image)) - self._first_caption[self.caption_image]
        self._caption_rows = first[self.image_rows[self.caption_image]] + places

    @property
    def num_captions(self) -> int:
        return len(self._caption_rows)

    def captions_of(self, image: int) -> list[int]:
        """Indices of an image's captions, 0 to ``num_captions - 1``."""
        return list(range(*self._first_caption[image : image + 2].tolist()))

    def caption_text(self, caption: int) -> str:
        return self.token_store.text(self._caption_rows[caption])

    @property
    def language(self) -> str:
        """The name of the language or pipeline that cut the captions into words."""
        return self.token_store.recipe["language"].get("name", "")

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

    def region_features(self, image: int) -> np.ndarray:
        """The features of an image's regions ``[R, F]`` as stored, read past the map (`RegionStore.read`)."""
        return self.region_store.read(self._region_rows[image]).features

    def region_counts(self) -> np.ndarray:
        """How many regions each image has, int64 ``[N]``."""
        return self.region_store.num_boxes[self._region_rows]

    def region_batch(self, images: Sequence[int], into: Memory | None = np.empty) -> RegionBatch:
        """The regions of some images, padded to the most of them.

        `into` gives the memory for the features (`RegionStore.padded`); without it they are None.
        """
        return read_regions(self.region_store, [self._region_rows[image] for image in images], into)

    def word_batch(self, captions: Sequence[int], *, states: bool = True) -> WordBatch:
        """The words, or the word pieces of words, of some captions, padded to the longest.

        Without `states`, those of text features are None.
        """
        rows = [self._caption_rows[caption] for caption in captions]
        if self.pieces:
            return self._piece_batch(rows, states)
        return word_batch([self.token_store.words(row) for row in rows], [self.token_store.pos(row) for row in rows])

    def teacher_batch(self, captions: Sequence[int]) -> TeacherBatch | None:
        """What uni-modal teachers make of some captions and of their images; None without a teacher store."""
        if self.teacher_store is None:
            return None
        images = self.image_rows[self.caption_image[np.asarray(captions)]]
        rows = [self._caption_rows[caption] for caption in captions]
        return TeacherBatch(
            images=torch.from_numpy(self.teacher_store.embeddings("images", images)),
            captions=torch.from_numpy(self.teacher_store.embeddings("captions", rows)),
        )

    def _require_taught(self, store: TeacherStore) -> None:
        """Raise `InputError` for an image without the image teacher's vector."""
        failures = store.failures()
        for image in self.images:
            if image.id in failures:
                raise InputError(
                    f"image {image.id!r} has regions, but no vector of its teacher: {failures[image.id]}",
                    where=store.folder,
                    fix="choose another image teacher (regions-mean has a vector of every image with regions)",
                )

    def states(self, caption: int) -> np.ndarray:
        """A frozen encoder's states of a caption, float16 ``[N, W]``, in the order of `word_batch`."""
        return self.text_store.states(self._caption_rows[caption])

    def _piece_batch(self, rows: list[int], states: bool) -> WordBatch:
        batch = piece_batch([self.token_store.pieces(row) for row in rows], [self.token_store.pos(row) for row in rows])
        counts = batch.mask.sum(dim=1).tolist()
        for row, count in zip(rows, counts, strict=True):
            if not count:
                self.token_store.word_pieces(row)  # says what is wrong
        if self.text_store is None:
            return batch
        found = [self.text_store.states(row) for row in rows]
        for row, count, own in zip(rows, counts, found, strict=True):
            if len(own) != count:
                raise InputError(
                    f"caption {row} has {len(own)} states, and {count} word pieces",
                    where=self.text_store.folder,
                    fix="run the text_features stage of this data set again",
                )
        return replace(batch, features=pad(found)[0] if states else None, pieces=None, place=None)


def read_regions(store: RegionStore, rows: Sequence[int], into: Memory | None = np.empty) -> RegionBatch:
    """The regions in some rows of a store, padded to the most of them (`RegionStore.padded`)."""
    features, boxes, counts, sizes = store.padded(rows, into)
    return RegionBatch(
        features=None if features is None else torch.from_numpy(features),
        boxes=torch.from_numpy(boxes),
        image_size=torch.from_numpy(sizes).float(),
        mask=torch.arange(boxes.shape[1]) < torch.from_numpy(counts)[:, None],
    )
