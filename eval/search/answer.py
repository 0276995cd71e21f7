"""The answer of a search: hits in order, and the regions of their pictures that the words match."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from eval.matching.correspondence import Matches
from eval.report.drawing import Drawing, Highlight, Placed, caption_html, draw, highlights, place
from eval.search.words import ReadCaptions
from extract.stores.regions import Regions
from manifests.schema import CaptionedImage
from train.data import Word

Kind = Literal["images", "captions", "alike"]


@dataclass(frozen=True)
class Hit:
    """One image or caption that was found.

    row : the image's row in the index or the store.
    score : of a text with an image, the product of their embeddings; of two images, their cosine.
    text : the caption that was found, or the image's first; empty where it has none.
    """

    row: int
    image: CaptionedImage
    score: float
    text: str


@dataclass(frozen=True)
class Answer:
    """The hits of a query, best first.

    query : the text, a picture's file or id.
    kind : "images" for a text, "captions" for a picture, "alike" for images like a picture.
    searched : a text that names the index or the store.
    unknown : words of a text that the run's vocabulary lacks.
    asked : the image of the index that was asked with; None for a text and for another picture.
    fits : whether the best hit scores as much as such a query's should (`Index.fitting`), as far as that is known.
    """

    query: str
    kind: Kind
    searched: str
    hits: list[Hit]
    unknown: list[str] = field(default_factory=list)
    asked: CaptionedImage | None = None
    fits: bool = True

    def __str__(self) -> str:
        return table(self)


@dataclass(frozen=True)
class WordMatches:
    """The words of P captions with the regions that they match, each caption in a picture of its own.

    caption, image : of each pair the caption of `read` and the image of `pictures`.
    boxes : whether the regions' boxes are known.
    """

    read: ReadCaptions
    pictures: Sequence[Regions]
    caption: Sequence[int]
    caption_image: Sequence[int]
    matches: Matches
    boxes: bool

    def __len__(self) -> int:
        return len(self.caption)

    @property
    def language(self) -> str:
        return self.read.language

    def caption_words(self, pair: int) -> list[Word]:
        return self.read.words[self.caption[pair]]

    def regions(self, image: int) -> Regions:
        return self.pictures[image]

    def text(self, pair: int) -> str:
        return self.read.texts[self.caption[pair]]

    def unknown(self, pair: int) -> list[Word]:
        """The words of a pair's caption that the run's vocabulary lacks."""
        return self.read.unknown[self.caption[pair]]

    def highlights(self, pair: int) -> list[Highlight]:
        """The words of a pair's caption that are worth drawing. An unknown word is none: it would match anything."""
        unknown = {word.start for word in self.unknown(pair)}
        return [highlight for highlight in highlights(self, pair, None) if highlight.start not in unknown]

    def placed(self, pair: int) -> list[Placed]:
        """The regions that these words match; none where their boxes aren't known."""
        return place(self, pair, self.highlights(pair), self.matches, None) if self.boxes else []

    def drawing(self, pair: int) -> Drawing | None:
        """The same as SVG; None where the boxes aren't known."""
        return draw(self, pair, self.highlights(pair), self.matches, None) if self.boxes else None

    def html(self, pair: int) -> str:
        """The caption with these words as buttons."""
        return caption_html(self.text(pair), self.highlights(pair))

    def size(self, pair: int) -> tuple[int, int]:
        """Width and height of the pair's picture, in pixels."""
        width, height = self.pictures[self.caption_image[pair]].image_size
        return int(width), int(height)


def table(answer: Answer, width: int = 100) -> str:
    """The hits as text for a terminal of `width` columns: rank, image, score, caption."""
    ids = [hit.image.id for hit in answer.hits]
    column = max(len("image"), *map(len, ids)) if ids else 5
    lines = [f"{'rank':>4}  {'image'.ljust(column)}  {'score':>7}  caption"]
    for rank, hit in enumerate(answer.hits, 1):
        line = f"{rank:>4}  {hit.image.id.ljust(column)}  {hit.score:7.4f}  {' '.join(hit.text.split())}"
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
