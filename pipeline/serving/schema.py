"""What the endpoints answer, as JSON. `/api/openapi.json` states the same for other programs."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from eval.search.answer import Kind

MOST_CHARACTERS = 1_000
MOST_HITS = 100
MOST_BYTES = 32 * 2**20


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IndexFacts(_Body):
    """An index that is served."""

    name: str
    run: str
    dataset: str
    images: int
    captions: int
    takes_pictures: bool = Field(description="whether a picture that is not in the index can be asked with")
    knows_all_words: bool = Field(description="whether no word can be unknown, as of a run that reads word pieces")
    unit_scores: bool = Field(description="whether a text's score is a cosine, 1 at most")
    examples: list[str] = Field(description="captions of the index, to begin with")


class Limits(_Body):
    """What a request may hold."""

    characters: int = Field(MOST_CHARACTERS, description="of a text")
    hits: int = Field(MOST_HITS, description="of an answer")
    bytes: int = Field(MOST_BYTES, description="of a picture's file")


class Health(_Body):
    """The server is up, and these indexes are loaded."""

    status: Literal["ok"] = "ok"
    version: str
    indexes: list[IndexFacts]
    limits: Limits = Limits()


class HitFacts(_Body):
    """An image or a caption that was found."""

    rank: int = Field(description="from 1")
    row: int = Field(description="of the image in the index, from 0")
    id: str = Field(description="of the image in its data set")
    score: float = Field(
        description="of a text with an image, the product of their embeddings; of images, their cosine"
    )
    caption: str = Field(description="the caption that was found, or the image's first; empty where it has none")
    picture: str = Field(description="address of the image as JPEG")
    file: str = Field(description="path of the image's file: whole on this machine alone, else from the image root")


class Word(_Body):
    """A word of a text."""

    start: int = Field(description="its first character in the text")
    end: int = Field(description="the character behind its last")
    colour: int | None = Field(description="number of its colour; null for a word that isn't drawn")
    known: bool = Field(description="whether the run's vocabulary has it")


class Region(_Body):
    """The region of a picture that words match best."""

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2 in pixels of the upright picture")
    colour: int
    words: list[int] = Field(description="places in the text's words")


class MatchedPicture(_Body):
    """A text with one picture."""

    row: int | None = Field(description="of the image in the index; null for a picture that isn't there")
    width: int
    height: int
    text: str
    words: list[Word]
    regions: list[Region] = Field(description="empty where the regions' boxes aren't known")


class SearchAnswer(_Body):
    """The hits of a query, best first."""

    index: str
    kind: Kind = Field(description="images for a text; captions for a picture; alike for images like a picture")
    query: str
    searched: str = Field(description="what was searched, in words")
    unknown: list[str] = Field(description="words of the text that the run's vocabulary lacks")
    row: int | None = Field(description="of the image of the index that was asked with")
    fits: bool = Field(description="false where the best hit of a text scores no more than unrelated pictures do")
    hits: list[HitFacts]
    matches: list[MatchedPicture] = Field(description="for captions: each with the picture that was asked with")
    milliseconds: float


class Matches(_Body):
    """A text with several pictures."""

    index: str
    matches: list[MatchedPicture]


class Refusal(_Body):
    """Why a request isn't answered."""

    error: str
    where: str
    fix: str
