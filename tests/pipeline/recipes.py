"""The recipes of docs/sharing.md: its code blocks by heading, with the page's made-up places replaced by real ones."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tests.pipeline.project import CHECKOUT

PAGE = CHECKOUT / "docs" / "sharing.md"
PLACES = (
    "https://github.com/lab/features",
    "http://features.lab.example",
    "http://s3.lab.example",
    "/srv/selfalign",
    "listen 80",
    "researchers",
)


@dataclass(frozen=True)
class Block:
    """A code block: the heading above it, its place among that heading's blocks of its language, and its text."""

    heading: str
    language: str
    number: int
    text: str

    @property
    def name(self) -> tuple[str, str, int]:
        return self.heading, self.language, self.number


def blocks(page: str = "") -> list[Block]:
    """All code blocks of the page, in its order."""
    found: list[Block] = []
    heading = ""
    for match in re.finditer(r"^#+ ([^\n]+)$|^```(\w+)\n(.*?)^```$", page or PAGE.read_text("utf-8"), re.M | re.S):
        if match[1]:
            heading = match[1]
            continue
        number = sum(block.name[:2] == (heading, match[2]) for block in found)
        found.append(Block(heading, match[2], number, match[3]))
    return found


def recipe(heading: str, language: str = "sh", number: int = 0) -> str:
    """The text of one block as it stands on the page."""
    (block,) = (block for block in blocks() if block.name == (heading, language, number))
    return block.text


def placed(text: str, places: Mapping[str, str]) -> str:
    """A block with the made-up `PLACES` replaced; one that has no replacement may not be there."""
    for place in PLACES:
        if place in text:
            text = text.replace(place, places[place])
    return text
