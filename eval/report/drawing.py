"""A caption's words and the regions they matched, as coloured text and as SVG over the picture.

Words that mean the same object share a colour where the data set knows the objects. Elsewhere each noun, adjective and
verb has its own. Without parts of speech each word but the stop words of the language has one; of an unknown language,
each longer word. Words that match one region share its box. It is drawn solid where the region is the object that one
of them means, dashed where it isn't, thin where nobody knows.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from eval.matching.correspondence import Matches, phrase_of, region_objects
from extract.text.languages import stop_words
from manifests.grounding import Grounding
from train.data import RetrievalData, Word

CONTENT = {"NOUN", "PROPN", "ADJ", "VERB", "NUM"}
COLOURS = 8
VIEW = 320  # the longer side of a drawing, in its own units


@dataclass(frozen=True)
class Highlight:
    """A coloured word: its characters in the caption, its colour's number and the object it means, if known."""

    number: int
    text: str
    start: int
    end: int
    colour: int
    object: int | None


def highlights(data: RetrievalData, caption: int, truth: Grounding | None) -> list[Highlight]:
    """The words of a caption that are worth drawing, in order."""
    words = data.caption_words(caption)
    if truth is None:
        content = [word for word in words if word.pos in CONTENT]
        chosen = [(word, None) for word in content or _telling(words, stop_words(data.language))]
    else:
        phrases = truth.phrases[data.captions_of(int(data.caption_image[caption])).index(caption)]
        linked = [(word, phrase_of(word.start, word.end, phrases)) for word in words]
        chosen = [(word, phrase.object) for word, phrase in linked if phrase is not None]
    colours: dict[int, int] = {}
    found = []
    for number, (word, object) in enumerate(chosen):
        colour = colours.setdefault(number if object is None else object, len(colours)) % COLOURS
        found.append(Highlight(number, word.text, word.start, word.end, colour, object))
    return found


def _telling(words: Sequence[Word], stop: Collection[str]) -> list[Word]:
    """The words that are no stop words; those of more than three letters where no stop word is known.

    Where every word is one character, all letters.
    """
    if not stop and any(len(word.text) > 1 for word in words):
        return [word for word in words if len(word.text) > 3]
    return [word for word in words if word.text.lower() not in stop and any(map(str.isalnum, word.text))]


def caption_html(text: str, words: Sequence[Highlight]) -> str:
    """The caption with each marked word as a button that lights its regions."""
    parts, at = [], 0
    for highlight in words:
        parts.append(escape(text[at : highlight.start]))
        parts.append(
            f'<button type="button" class="word k{highlight.colour}" data-word="{highlight.number}">'
            f"{escape(text[highlight.start : highlight.end])}</button>"
        )
        at = highlight.end
    return "".join(parts) + escape(text[at:])


@dataclass(frozen=True)
class Placed:
    """The words that matched one region, and its box in pixels (x1, y1, x2, y2). `right` says of each word whether the
    region is the object that it means; None where that isn't known."""

    box: np.ndarray
    words: tuple[Highlight, ...]
    right: tuple[bool | None, ...]

    @property
    def shown(self) -> int:
        """The place of the word whose colour the box has: the first that is right, or the first."""
        return next((place for place, right in enumerate(self.right) if right), 0)


def place(
    data: RetrievalData, caption: int, words: Sequence[Highlight], matches: Matches, truth: Grounding | None
) -> list[Placed]:
    """The regions of a caption's own picture that its marked words matched."""
    boxes = np.asarray(data.regions(int(data.caption_image[caption])).boxes, float)
    objects = None if truth is None else region_objects(boxes, np.array(truth.boxes, float).reshape(-1, 4))
    at = {(int(matches.start[row]), int(matches.end[row])): int(matches.region[row]) for row in matches.rows(caption)}
    groups: dict[tuple, tuple[int, list[Highlight]]] = {}  # by box: two regions may have the same
    for highlight in words:
        if (region := at.get((highlight.start, highlight.end))) is not None:
            groups.setdefault(tuple(boxes[region]), (region, []))[1].append(highlight)
    placed = []
    for region, group in groups.values():
        right = tuple(None if objects is None else bool(objects[region] == highlight.object) for highlight in group)
        placed.append(Placed(boxes[region], tuple(group), right))
    return placed


@dataclass(frozen=True)
class Drawing:
    """Regions over one picture: the SVG, the picture's width over height, and how many of the words are right; None
    where that isn't known."""

    svg: str
    aspect: float
    right: int | None
    words: int


def draw(
    data: RetrievalData, caption: int, words: Sequence[Highlight], matches: Matches, truth: Grounding | None
) -> Drawing:
    """Draw what `place` gives, and the true objects, which the page shows for the word that is looked at."""
    width, height = (int(side) for side in data.regions(int(data.caption_image[caption])).image_size)
    scale = VIEW / max(width, height)
    shapes = []
    placed = place(data, caption, words, matches, truth)
    for match in placed:
        kinds = [{None: "open", True: "right", False: "wrong"}[right] for right in match.right]
        styles = [f"k{highlight.colour} {kind}" for highlight, kind in zip(match.words, kinds, strict=True)]
        shapes.append(_box(match.box * scale, 0, styles[match.shown], match.words, styles))
    if truth is not None:
        for object in sorted({highlight.object for highlight in words if highlight.object is not None}):
            owned = [highlight for highlight in words if highlight.object == object]
            shapes.append(_box(np.array(truth.boxes[object]) * scale, -4, f"k{owned[0].colour} truth", owned))
    right = None if truth is None else sum(sum(map(bool, match.right)) for match in placed)
    view = f"0 0 {width * scale:.0f} {height * scale:.0f}"
    svg = f'<svg class="regions" viewBox="{view}" aria-hidden="true">{"".join(shapes)}</svg>'
    return Drawing(svg, width / height, right, sum(len(match.words) for match in placed))


def _box(box: np.ndarray, inset: float, style: str, words: Sequence[Highlight], styles: Sequence[str] = ()) -> str:
    """A box as SVG in the `style` of one word; `styles` are those of each of its words, one of which the page shows."""
    x, y = box[0] + inset, box[1] + inset
    width, height = max(1.0, box[2] - box[0] - 2 * inset), max(1.0, box[3] - box[1] - 2 * inset)
    numbers = " ".join(str(highlight.number) for highlight in words)
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    shape = f'<rect class="halo" {place}/><rect class="box" {place}/>'
    if styles:
        label = escape(" ".join(highlight.text for highlight in words))
        below = y < 16
        anchor = "end" if x + 8 * len(label) > VIEW else "start"
        at = f'x="{x if anchor == "start" else x + width:.1f}" y="{y + height + 14 if below else y - 4:.1f}"'
        shape += f'<text {at} text-anchor="{anchor}">{label}</text>'
    known = f' data-styles="{",".join(styles)}"' if styles else ""
    return f'<g class="{style}" data-words="{numbers}"{known}>{shape}</g>'
