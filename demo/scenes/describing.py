"""Writes captions of a demo scene: true sentences about one to three objects, with the truth word by word.

A caption names objects by shape and by one to three of colour, texture and size, in synonyms. It also names their
relation ("A striped hoop is to the left of a big crimson star."). Each word that describes an object is recorded as a
`Phrase` with that object. An object is distinguished from the others of its scene wherever its attributes allow that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import dist, hypot
from typing import NamedTuple, TypeVar

import numpy as np

from demo.scenes.drawing import Scene, SceneObject
from manifests.grounding import Phrase

T = TypeVar("T")

WORDS: dict[str, dict[str, str]] = {
    "shape": {
        "circle": "circle",
        "disc": "circle",
        "square": "square",
        "block": "square",
        "triangle": "triangle",
        "wedge": "triangle",
        "star": "star",
        "ring": "ring",
        "hoop": "ring",
    },
    "colour": {
        "red": "red",
        "crimson": "red",
        "orange": "orange",
        "yellow": "yellow",
        "golden": "yellow",
        "green": "green",
        "emerald": "green",
        "blue": "blue",
        "azure": "blue",
        "purple": "purple",
        "violet": "purple",
    },
    "texture": {
        "plain": "plain",
        "solid": "plain",
        "striped": "striped",
        "stripy": "striped",
        "stripes": "striped",
        "dotted": "dotted",
        "spotted": "dotted",
        "dots": "dotted",
        "spots": "dotted",
    },
    "size": {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large"},
}
"""Kind of attribute -> word (lower case) -> the attribute's value in `demo.scenes.drawing`."""

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "on the left of"),
    "right": ("to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "near": ("near", "next to", "close to", "beside"),
}
"""Relation -> the ways of saying it of a first object with regard to a second."""

_PLURALS = {"striped": ("stripes",), "dotted": ("dots", "spots")}  # after "with"
_ITS = {
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "beneath it"),
    "near": ("near it", "next to it", "beside it"),
}
_VERBS = ("sits", "floats", "stands", "hangs", "rests", "lies")
_PARTICIPLES = ("drawn", "painted", "placed", "seen")
_PLACES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left", "in the middle", "on the right"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)

PARTS_OF_SPEECH: dict[str, str] = {
    word: tag
    for tag, words in {
        "ADJ": "close next top bottom",
        "ADP": "to on of above over below under beneath near beside between in at with",
        "ADV": "together",
        "AUX": "is can be",
        "CCONJ": "and",
        "DET": "a an the",
        "NOUN": "left right corner middle picture stripes dots spots",
        "PRON": "there you it its that",
        "PUNCT": ". ,",
        "SCONJ": "while",
        "VERB": "see has shows appear " + " ".join(_VERBS + _PARTICIPLES),
    }.items()
    for word in words.split()
}
"""Word or mark (lower case) -> universal part-of-speech tag, for everything that a caption can hold."""
PARTS_OF_SPEECH |= dict.fromkeys(WORDS["shape"], "NOUN")
for _kind in ("colour", "texture", "size"):
    PARTS_OF_SPEECH |= {word: "ADJ" for word in WORDS[_kind] if word not in PARTS_OF_SPEECH}


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence, and its words that mean something about an object (`Phrase.object` counts `Scene.objects`)."""

    text: str
    phrases: tuple[Phrase, ...]


class _Token(NamedTuple):
    text: str
    object: int | None = None
    kind: str | None = None


def describe(rng: np.random.Generator, scene: Scene, count: int = 5) -> list[Caption]:
    """Write `count` captions of a scene with at least one object, no two of them equal."""
    captions: list[Caption] = []
    while len(captions) < count:
        caption = _finish(_Writer(rng, scene).sentence())
        if caption not in captions:
            captions.append(caption)
    return captions


def relations(first: SceneObject, second: SceneObject, side: int) -> tuple[str, ...]:
    """The keys of `RELATIONS` that hold of `first` with regard to `second`, in a picture of `side` pixels: one or two.

    Beside and above need a gap between the boxes, along the axis on which the centres differ most. Near is a gap of at
    most a tenth of the picture. One of them holds of any two objects of a scene, since their boxes don't overlap.
    """
    (ax, ay), (bx, by) = _centre(first), _centre(second)
    a, b = first.box, second.box
    found = []
    if abs(ax - bx) >= abs(ay - by):
        found += ["left"] * (a[2] <= b[0]) + ["right"] * (b[2] <= a[0])
    else:
        found += ["above"] * (a[3] <= b[1]) + ["below"] * (b[3] <= a[1])
    gap = hypot(max(a[0] - b[2], b[0] - a[2], 0), max(a[1] - b[3], b[1] - a[3], 0))
    return (*found, "near") if gap <= side / 10 else tuple(found)


def is_between(middle: SceneObject, first: SceneObject, second: SceneObject, side: int) -> bool:
    """Whether `middle` lies near the inner half of the line from `first` to `second`, in a picture of `side` pixels."""
    (mx, my), (ax, ay), (bx, by) = _centre(middle), _centre(first), _centre(second)
    length = (bx - ax) ** 2 + (by - ay) ** 2
    along = ((mx - ax) * (bx - ax) + (my - ay) * (by - ay)) / length if length else 0.0
    return 0.25 <= along <= 0.75 and dist((mx, my), (ax + along * (bx - ax), ay + along * (by - ay))) <= side / 10


def _centre(item: SceneObject) -> tuple[float, float]:
    return (item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2


def _words(text: str) -> list[_Token]:
    return [_Token(word) for word in text.split()]


def _finish(tokens: list[_Token]) -> Caption:
    """Join tokens to a sentence: a or an, capital letter, no space before a comma, full stop."""
    text, phrases = "", []
    for number, token in enumerate(tokens):
        word = token.text
        if word == "a" and tokens[number + 1].text[0] in "aeiou":
            word = "an"
        if text and word != ",":
            text += " "
        if token.kind is not None:
            phrases.append(Phrase(len(text), len(text) + len(word), token.object, token.kind))
        text += word
    return Caption(text[0].upper() + text[1:] + ".", tuple(phrases))


class _Writer:
    """Writes one sentence about a scene as tokens."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        self.rng = rng
        self.scene = scene

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self.rng.random() * len(items))]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def sentence(self) -> list[_Token]:
        """A sentence about one, two or three objects, of those that the scene has."""
        order = self.rng.permutation(len(self.scene.objects)).tolist()
        number = 1 + int(np.searchsorted((0.12, 0.65), self.rng.random()))
        if number >= 3 and len(order) >= 3:
            return self.of_three(*order[:3])
        if number >= 2 and len(order) >= 2:
            return self.of_two(*order[:2])
        return self.of_one(order[0])

    def of_one(self, a: int) -> list[_Token]:
        x, y = _centre(self.scene.objects[a])
        thirds = [min(2, int(3 * value / self.scene.side)) for value in (x, y)]
        place = _words(_PLACES[thirds[1]][thirds[0]] + " of the picture")
        return self.placed(self.mention(a), place, [])

    def of_two(self, a: int, b: int) -> list[_Token]:
        relation = self.relation(a, b)
        if self.chance(0.06):
            pair = [*self.mention(a), *_words("and"), *self.mention(b)]
            return [*_words("the picture shows"), *pair] if self.chance(0.5) else [*pair, *_words("appear together")]
        if self.chance(0.12):
            its = self.pick(_ITS[self.relation(b, a)])
            return [*self.mention(a), *_words("has"), *self.mention(b), *_words(its)]
        return self.placed(self.mention(a), _words(self.pick(RELATIONS[relation])), self.mention(b))

    def of_three(self, a: int, b: int, c: int) -> list[_Token]:
        objects, side = self.scene.objects, self.scene.side
        for middle, first, second in ((a, b, c), (b, c, a), (c, a, b)):
            if is_between(objects[middle], objects[first], objects[second], side) and self.chance(0.8):
                ends = [*self.mention(first), *_words("and"), *self.mention(second)]
                return self.placed(self.mention(middle), _words("between"), ends)
        to_b, to_c, back = self.relation(a, b), self.relation(a, c), self.relation(c, b)
        if self.chance(0.06):
            return [
                *_words("the picture shows"),
                *self.mention(a),
                *_words(","),
                *self.mention(b),
                *_words("and"),
                *self.mention(c),
            ]
        first = [*self.mention(a), *_words(self.pick(("is", *_VERBS))), *_words(self.pick(RELATIONS[to_b]))]
        if self.chance(0.5) and objects[b].shape not in (objects[a].shape, objects[c].shape):
            again = self.pick(self.synonyms("shape", objects[b].shape))
            named = [*self.mention(b, noun=again), *_words(self.pick((", while", ", and")))]
            rest = [*self.mention(c), *_words("is"), *_words(self.pick(RELATIONS[back]))]
            return [*first, *named, *rest, _Token("the"), _Token(again, b, "shape")]
        return [*first, *self.mention(b), *_words("and"), *_words(self.pick(RELATIONS[to_c])), *self.mention(c)]

    def placed(self, what: list[_Token], place: list[_Token], ground: list[_Token]) -> list[_Token]:
        """A sentence that says that `what` is at `place` + `ground`, in one of several word orders."""
        there = [*place, *ground]
        return self.pick(
            (
                [*what, *_words("is"), *there],
                [*_words("there is"), *what, *there],
                [*what, *_words(self.pick(_VERBS)), *there],
                [*what, *_words(self.pick(_VERBS)), *there],
                [*there, *_words(", there is"), *what],
                [*there, *_words(self.pick(_VERBS)), *what],
                [*_words("you can see"), *what, *there],
                [*what, *_words("can be seen"), *there],
                [*what, *_words("is"), *_words(self.pick(_PARTICIPLES)), *there],
            )
        )

    def relation(self, a: int, b: int) -> str:
        """One true relation of object `a` to object `b`."""
        return self.pick(relations(self.scene.objects[a], self.scene.objects[b], self.scene.side))

    def synonyms(self, kind: str, value: str) -> list[str]:
        plurals = _PLURALS.get(value, ())
        return [word for word, meaning in WORDS[kind].items() if meaning == value and word not in plurals]

    def mention(self, index: int, noun: str | None = None) -> list[_Token]:
        """An object with article and attributes: "a small red ring with stripes"."""
        item = self.scene.objects[index]
        kinds = self.kinds_to_name(index)
        noun = noun or self.pick(self.synonyms("shape", item.shape))
        after: list[_Token] = []
        if "texture" in kinds and item.texture in _PLURALS and self.chance(0.35):
            kinds.remove("texture")
            after = [_Token("with"), _Token(self.pick(_PLURALS[item.texture]), index, "texture")]
        elif "colour" in kinds and self.chance(0.08):
            kinds.remove("colour")
            after = [*_words("that is"), _Token(self.pick(self.synonyms("colour", item.colour)), index, "colour")]
        self.rng.shuffle(kinds)
        kinds.sort(key=lambda kind: kind != "size")
        before = [_Token(self.pick(self.synonyms(kind, getattr(item, kind))), index, kind) for kind in kinds]
        return [_Token("a"), *before, _Token(noun, index, "shape"), *after]

    def kinds_to_name(self, index: int) -> list[str]:
        """Kinds of attributes to name: some at random, and more while another object of the scene fits them too."""
        item = self.scene.objects[index]
        kinds = [kind for kind, often in (("colour", 0.9), ("texture", 0.65), ("size", 0.35)) if self.chance(often)]
        left = [kind for kind in ("colour", "texture", "size") if kind not in kinds]
        self.rng.shuffle(left)
        others = [other for other in self.scene.objects if other is not item]
        while left and (
            not kinds
            or any(all(getattr(other, kind) == getattr(item, kind) for kind in ("shape", *kinds)) for other in others)
        ):
            kinds.append(left.pop())
        return kinds
