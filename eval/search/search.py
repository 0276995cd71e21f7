"""A searcher: an index with the run that made it, loaded once, which answers texts and pictures.

A text is read as the run reads captions. A picture of the index is its stored embedding; any other is extracted with
the recipe of the index's regions and encoded.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from eval.matching.correspondence import Matches, word_regions
from eval.search.answer import Answer, Hit, WordMatches
from eval.search.index import Index, Source
from eval.search.words import CaptionReader, ReadCaptions
from extract.settings import RegionSettings
from extract.stores.regions import Regions, RegionStore
from extract.vision.one_picture import PictureReader
from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import CaptionedImage
from train.batches import region_batch
from train.checkpoint import load_model
from train.model import RetrievalModel


@dataclass(frozen=True)
class Picture:
    """A picture that is asked with.

    name : its file or id, for messages.
    row : in the index; None where it isn't there.
    regions : that were extracted of it; None where it is in the index.
    """

    name: str
    row: int | None
    regions: Regions | None = None


class UnknownWords(InputError):
    """The run knows no word of a text; `words` has them all."""

    words: Sequence[str] = ()


class Searcher:
    """Answers queries in an index. Models are loaded at the first query that needs them.

    Parameters
    ----------
    device : torch device of the model and of the detector.
    settings : of the region stage that made the index's regions; None where they were imported.

    Raises
    ------
    InputError : the run or the data set has changed since the index was made.
    """

    def __init__(
        self, index: Index, source: Source, *, device: str = "cpu", settings: RegionSettings | None = None
    ) -> None:
        index.require_current(source)
        self.index = replace(index, device=device)
        self.source, self._device, self._settings = source, device, settings

    @cached_property
    def model(self) -> RetrievalModel:
        return load_model(self.source.model, self._device)

    @cached_property
    def reader(self) -> CaptionReader:
        words = replace(self.source.words, vocabulary=self.index.folder / "vocabulary.json")
        return CaptionReader(words, device=self._device)

    @cached_property
    def regions(self) -> RegionStore:
        return RegionStore(self.source.regions)

    @cached_property
    def _pictures(self) -> PictureReader:
        return PictureReader(self._settings, self.index.recipe["features"], device=self._device)

    def images(self, text: str, count: int = 10) -> Answer:
        """The `count` best images for a text.

        Raises InputError for a text without a word, and `UnknownWords` where the run knows none.
        """
        read = self.reader.read([text])
        unknown = [word.text for word in read.unknown[0]]
        if unknown and len(unknown) == len(read.words[0]):
            error = UnknownWords(
                f"the run knows none of its words: {', '.join(unknown)}",
                where=f"text {text!r}",
                fix=f"use words of the captions that it was trained on ({self.reader.vocabulary} lists them)",
            )
            error.words = unknown
            raise error
        with torch.inference_mode():
            found = self.model.encode_captions(read.batch.to(self._device)).embedding.float().cpu().numpy()
        (rows,), (scores,) = self.index.images(found, count)
        hits, least = self._image_hits(rows, scores), self.index.fitting
        fits = least is None or scores[0] >= least
        return Answer(text, "images", self.index.searched, hits, unknown, fits=bool(fits))

    def picture(self, picture: str | Path | bytes) -> Picture:
        """The picture in a file or in bytes, or the image of the index with this id.

        A picture with the bytes of an image of the index is that image; of any other the regions are extracted. Raises
        InputError for a missing or unreadable picture, and for one whose regions can't be extracted.
        """
        path = None if isinstance(picture, bytes) else Path(picture)
        if path is not None and not os.path.isfile(path):
            row = self.index.manifest.row_of(str(picture))
            if row is None:
                reason = "neither a file nor the id of an image of the index"
                raise InputError(reason, where=picture, fix="check its name")
            return Picture(str(picture), row)
        name = "the picture" if path is None else str(path)
        row = self.index.manifest.row_of_digest(hashlib.sha256(picture).hexdigest() if path is None else sha256(path))
        if row is not None:
            return Picture(name, row)
        if self._settings is None:
            raise InputError(
                f"it is not in the index, and the regions of {self.source.dataset} were imported: no detector for it "
                "is known",
                where=name,
                fix="search with a picture of the index",
            )
        return Picture(name, None, self._pictures.read(path or picture, name))

    def captions(self, picture: Picture, count: int = 10) -> Answer:
        """The `count` best captions for a picture."""
        index = self.index
        (rows,), (scores,) = index.texts(*self._embedding(picture), count)
        owners = index.caption_image[rows]
        texts = [index.manifest.texts(row, row + 1)[0] for row in rows.tolist()]
        hits = [
            Hit(owner, index.rows[owner], score, text)
            for owner, score, text in zip(owners.tolist(), scores.tolist(), texts, strict=True)
        ]
        return Answer(picture.name, "captions", index.searched, hits, asked=self._asked(picture))

    def alike(self, picture: Picture, count: int = 10) -> Answer:
        """The `count` images most like a picture."""
        (rows,), (scores,) = self.index.alike(*self._embedding(picture), count)
        hits = self._image_hits(rows, scores)
        return Answer(picture.name, "alike", self.index.searched, hits, asked=self._asked(picture))

    def match(self, texts: Sequence[str], pictures: Sequence[Picture]) -> WordMatches:
        """Which regions the words match, of one text in every picture, or of every text in one picture.

        Raises InputError for a text without a word, and for a picture whose regions aren't in the store.
        """
        read = self.reader.read(texts)
        seen = [own.regions or self.regions.regions(self.regions.row(self._id(own.row))) for own in pictures]
        pairs = max(len(texts), len(pictures))
        caption = np.arange(pairs) if len(texts) > 1 else np.zeros(pairs, np.int64)
        image = np.arange(pairs) if len(pictures) > 1 else np.zeros(pairs, np.int64)
        matches = self._match(read, seen, torch.from_numpy(caption), torch.from_numpy(image))
        return WordMatches(read, seen, caption.tolist(), image.tolist(), matches, self.regions.has_boxes)

    @torch.inference_mode()
    def _match(
        self, read: ReadCaptions, pictures: Sequence[Regions], caption: torch.Tensor, image: torch.Tensor
    ) -> Matches:
        batch = read.batch.to(self._device)
        words = self.model.encode_captions(batch)
        regions = region_batch(pictures).to(self._device)
        seen = self.model.encode_locals(regions)
        region, cosine = (
            found.cpu().numpy()
            for found in word_regions(
                seen[image], regions.mask[image], words.locals[caption], batch.mask[caption], batch.word[caption]
            )
        )
        pair, number = np.nonzero(~np.isnan(cosine))
        own = [read.words[caption[at]][word] for at, word in zip(pair.tolist(), number.tolist(), strict=True)]
        start, end = (np.array([getattr(word, name) for word in own], np.int32) for name in ("start", "end"))
        no_concept = np.full(len(pair), -1, np.int32)
        return Matches(
            pair.astype(np.int32), start, end, region[pair, number], cosine[pair, number].astype(np.float32), no_concept
        )

    def matches(self, answer: Answer, picture: Picture | None = None) -> WordMatches | None:
        """The regions that the words of an answer's captions match. A text's words are matched in the images found,
        captions' words in the query picture. None for images like a picture, and where nothing was found."""
        if answer.kind == "alike" or not answer.hits:
            return None
        if answer.kind == "images":
            return self.match([answer.query], [Picture(hit.image.id, hit.row) for hit in answer.hits])
        return self.match([hit.text for hit in answer.hits], [picture])

    def _embedding(self, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
        """``pooled [1, k, P]`` and ``context [1, S]``."""
        if picture.row is not None:
            own = slice(picture.row, picture.row + 1)
            return self.index.pooled[own], self.index.context[own]
        with torch.inference_mode():
            seen = self.model.encode_images(region_batch([picture.regions]).to(self._device))
        return seen.pooled.float().cpu().numpy(), seen.context.float().cpu().numpy()

    def _image_hits(self, rows: np.ndarray, scores: np.ndarray) -> list[Hit]:
        images = [self.index.rows[row] for row in rows.tolist()]
        return [
            Hit(row, image, score, image.captions[0] if image.captions else "")
            for row, image, score in zip(rows.tolist(), images, scores.tolist(), strict=True)
        ]

    def _asked(self, picture: Picture) -> CaptionedImage | None:
        return None if picture.row is None else self.index.rows[picture.row]

    def _id(self, row: int) -> str:
        return self.index.manifest.images[row].id
