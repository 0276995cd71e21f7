"""The indexes that are served. One thread answers: a search uses all cores by itself."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from eval.report.pictures import read_shown, reduced
from eval.search.answer import Answer, WordMatches
from eval.search.search import Picture, Searcher, UnknownWords
from extract.vision.decode import UnreadableImage
from manifests.errors import InputError
from pipeline.serving.schema import HitFacts, IndexFacts, MatchedPicture, Region, SearchAnswer, Word

T = TypeVar("T")
EXAMPLES = 3
MOST_WAITING = 32
SIDES = (160, 320, 640, 1280)
LARGEST_KEPT = 640
KEPT = 1024  # thumbnails, some 20 kB each
_SEARCHING = ThreadPoolExecutor(1, thread_name_prefix="search")


class Busy(Exception):
    """More requests wait than are answered in time."""


class ServedIndex:
    """An index with its pictures, by the name that requests use.

    Parameters
    ----------
    image_root : the folder of the data set's pictures.
    tells_paths : whether answers have the whole path of a picture, which others than this machine's user needn't know.
    """

    def __init__(
        self, name: str, searcher: Searcher, image_root: Path, *, takes_pictures: bool, tells_paths: bool = False
    ):
        self.name, self.searcher = name, searcher
        self._root, self._takes_pictures, self._tells_paths = image_root, takes_pictures, tells_paths
        self._kept = lru_cache(KEPT)(self._thumbnail)

    def facts(self) -> IndexFacts:
        index = self.searcher.index
        return IndexFacts(
            name=self.name,
            run=index.recipe["run"]["name"],
            dataset=index.recipe["data set"]["name"],
            images=len(index.manifest),
            captions=index.manifest.num_captions,
            takes_pictures=self._takes_pictures,
            knows_all_words=self.searcher.source.words.pieces,
            unit_scores=index.has_unit_scores,
            examples=self._examples(),
        )

    def _examples(self) -> list[str]:
        """Captions from all over the index."""
        manifest = self.searcher.index.manifest
        total = manifest.num_captions
        rows = sorted({total * place // EXAMPLES for place in range(min(EXAMPLES, total))})
        return [manifest.texts(row, row + 1)[0] for row in rows]

    def warm(self) -> None:
        """Load what a text needs, so that the first one who asks doesn't wait for it. Raises InputError as a search."""
        _SEARCHING.submit(self._search_once).result()

    def _search_once(self) -> None:
        for text in self._examples()[:1]:
            with suppress(UnknownWords):
                self.searcher.matches(self.searcher.images(text, 1))

    def images(self, text: str, count: int) -> SearchAnswer:
        """The best images for a text; none where the run knows no word of it, as of a word that is half typed."""

        def answer() -> tuple[Answer, None]:
            try:
                return self.searcher.images(text, count), None
            except UnknownWords as error:
                return Answer(text, "images", self.searcher.index.searched, [], list(error.words)), None

        return self._timed(answer)

    def picture(self, asked: str | bytes, kind: str, count: int) -> SearchAnswer:
        """Captions for a picture, or images like it; `asked` is an id or the bytes of a file."""

        def answer() -> tuple[Answer, Picture]:
            picture = self._of_id(asked) if isinstance(asked, str) else self.searcher.picture(asked)
            search = self.searcher.captions if kind == "captions" else self.searcher.alike
            return search(picture, count), picture

        return self._timed(answer)

    def matches(self, text: str, rows: Sequence[int]) -> list[MatchedPicture]:
        """Which regions of some images the words of a text match."""
        manifest = self.searcher.index.manifest
        for row in rows:
            if row >= len(manifest):
                reason = f"there is no row {row}: the index has {len(manifest):,} images"
                raise InputError(reason, where=self.name, fix="take the rows of an answer")
        pictures = [Picture(manifest.images[row].id, row) for row in rows]
        return _matched(self.searcher.match([text], pictures), rows)

    def _of_id(self, id: str) -> Picture:
        row = self.searcher.index.manifest.row_of(id)
        if row is None:
            raise InputError(f"there is no image {id!r}", where=self.name, fix="take the id of an answer")
        return Picture(id, row)

    def _timed(self, answer: Callable[[], tuple[Answer, Picture | None]]) -> SearchAnswer:
        start = time.perf_counter()
        found, picture = answer()
        row = None if picture is None else picture.row
        matched = []
        if found.kind == "captions" and found.hits:
            matched = _matched(self.searcher.matches(found, picture), [row] * len(found.hits))
        return SearchAnswer(
            index=self.name,
            kind=found.kind,
            query=found.query,
            searched=found.searched,
            unknown=found.unknown,
            row=row,
            fits=found.fits,
            hits=[
                HitFacts(
                    rank=rank,
                    row=hit.row,
                    id=hit.image.id,
                    score=hit.score,
                    caption=hit.text,
                    # The hash lets a browser keep a picture as long as it is the same.
                    picture=f"/pictures/{quote(self.name, safe='')}/{hit.row}?v={hit.image.sha256[:12]}",
                    file=str((self._root / hit.image.path).absolute()) if self._tells_paths else hit.image.path,
                )
                for rank, hit in enumerate(found.hits, 1)
            ],
            matches=matched,
            milliseconds=round((time.perf_counter() - start) * 1000, 2),
        )

    def thumbnail(self, row: int, side: int) -> bytes:
        """An image as JPEG, reduced to `side` pixels. Raises InputError where it isn't there or can't be read."""
        return (self._kept if side <= LARGEST_KEPT else self._thumbnail)(row, side)

    def _thumbnail(self, row: int, side: int) -> bytes:
        manifest = self.searcher.index.manifest
        if row >= len(manifest):
            raise InputError(f"there is no row {row}", where=self.name, fix="take the rows of an answer")
        path = self._root / manifest.images[row].path
        try:
            image = reduced(read_shown(path), side)
        except (OSError, UnreadableImage) as error:
            raise InputError(f"the picture can't be read: {error}", where=path, fix="restore it") from error
        buffer = BytesIO()
        image.save(buffer, "jpeg", quality=82)
        return buffer.getvalue()


class Engine:
    """Served indexes by name; one thread asks them all."""

    def __init__(self, indexes: Sequence[ServedIndex]):
        self.indexes = {index.name: index for index in indexes}
        self._waiting = 0

    def index(self, name: str | None) -> ServedIndex | None:
        """The index of a name; without a name the first. None where there is no such index."""
        return self.indexes.get(next(iter(self.indexes)) if name is None else name)

    async def ask(self, work: Callable[[], T]) -> T:
        """What `work` gives in the searching thread. Raises `Busy` where too many wait for it."""
        if self._waiting >= MOST_WAITING:
            raise Busy
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(_SEARCHING, work)
        finally:
            self._waiting -= 1


def _matched(found: WordMatches, rows: Sequence[int | None]) -> list[MatchedPicture]:
    pictures = []
    for pair, row in enumerate(rows):
        highlights = {highlight.start: highlight for highlight in found.highlights(pair)}
        words, unknown = found.caption_words(pair), {word.start for word in found.unknown(pair)}
        place = {word.start: number for number, word in enumerate(words)}
        width, height = found.size(pair)
        regions = [
            Region(
                box=tuple(round(float(side), 1) for side in placed.box),
                colour=placed.words[0].colour,
                words=[place[highlight.start] for highlight in placed.words],
            )
            for placed in found.placed(pair)
        ]
        spans = [
            Word(
                start=word.start,
                end=word.end,
                colour=highlights[word.start].colour if word.start in highlights else None,
                known=word.start not in unknown,
            )
            for word in words
        ]
        pictures.append(
            MatchedPicture(row=row, width=width, height=height, text=found.text(pair), words=spans, regions=regions)
        )
    return pictures
