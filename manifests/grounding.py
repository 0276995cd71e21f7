"""Which object each word of a caption means, for data sets where that is known: one JSON row an image.

The scenes know it by construction; Flickr30K Entities has the same shape (boxes, and phrases linked to them).
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import InputError
from manifests.files import write_text
from manifests.jsonl import parse_row, placed_lines

FILE = "grounding.jsonl"
_AGAIN = "run the manifest stage again"
KINDS = ("shape", "colour", "texture", "size", "phrase")


@dataclass(frozen=True, slots=True)
class Phrase:
    """Characters `start` to `end` - 1 of a caption mean object number `object`; `kind` is one of `KINDS`."""

    start: int
    end: int
    object: int
    kind: str


@dataclass(frozen=True, slots=True)
class Grounding:
    """The objects of one image and the words that mean them.

    Parameters
    ----------
    image_id : the image's id in the manifest.
    boxes : one (x1, y1, x2, y2) in upright pixels an object.
    labels : one an object: what is known of it, such as {"shape": "ring", "colour": "red"}.
    phrases : one tuple of phrases a caption, in the manifest's order of captions.
    """

    image_id: str
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[dict[str, str], ...]
    phrases: tuple[tuple[Phrase, ...], ...]


def write_grounding(path: Path, items: Iterable[Grounding]) -> None:
    """Write `items` in their order as JSON Lines with sorted keys, atomically. Raises InputError for an invalid one."""
    lines, seen = [], {}
    for number, item in enumerate(items, 1):
        value = {
            "image_id": item.image_id,
            "boxes": [list(box) for box in item.boxes],
            "labels": list(item.labels),
            "phrases": [
                [{"start": p.start, "end": p.end, "object": p.object, "kind": p.kind} for p in caption]
                for caption in item.phrases
            ],
        }
        _check(value, seen, Path(path), number, fix="mend the code or the source that made this row")
        lines.append(json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_grounding(path: Path) -> dict[str, Grounding]:
    """Image id -> grounding, in the file's order. Raises InputError that names the file, the line and what to do."""
    items: dict[str, Grounding] = {}
    seen: dict[str, int] = {}
    for number, _, value in _rows(path):
        _check(value, seen, Path(path), number, fix=_AGAIN)
        items[value["image_id"]] = _grounding(value)
    return items


class Groundings:
    """The groundings of a file, each read when it is asked for: 16 bytes an image are in memory.

    Every row is checked once, and shown to `visit`. Raises InputError as `read_grounding` does.
    """

    def __init__(self, path: Path, visit: Callable[[Grounding], object]):
        self.path = Path(path)
        hashes, places = array("q"), array("q")
        for number, place, value in _rows(path):
            _check(value, {}, self.path, number, fix=_AGAIN)
            hashes.append(hash(value["image_id"]))
            places.append(place)
            visit(_grounding(value))
        own = np.array(hashes, np.int64)
        order = np.argsort(own, kind="stable")
        self._hashes, self._places = own[order], np.array(places, np.int64)[order]
        for same in np.flatnonzero(self._hashes[1:] == self._hashes[:-1]).tolist():
            ids = [self._at(place).image_id for place in self._places[same : same + 2].tolist()]
            if ids[0] == ids[1]:
                raise InputError(f"image_id {ids[0]!r} is given twice", where=self.path, fix=_AGAIN)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, image_id: str) -> Grounding | None:
        """That of an image; None where there is none."""
        first, end = np.searchsorted(self._hashes, hash(image_id)), len(self)
        while first < end and self._hashes[first] == hash(image_id):
            if (found := self._at(int(self._places[first]))).image_id == image_id:
                return found
            first += 1
        return None

    def _at(self, place: int) -> Grounding:
        with open(self.path, "rb") as file:
            file.seek(place)
            return _grounding(json.loads(file.readline().decode("utf-8-sig")))


def _rows(path: Path) -> Iterator[tuple[int, int, dict]]:
    """(line number from 1, the byte at which it begins, object) of every line that isn't blank."""
    for number, (place, line) in enumerate(placed_lines(path), 1):
        if (value := parse_row(line, path=path, fix=_AGAIN, line=number)) is not None:
            yield number, place, value


def _grounding(value: dict) -> Grounding:
    return Grounding(
        value["image_id"],
        tuple(tuple(float(x) for x in box) for box in value["boxes"]),
        tuple(value["labels"]),
        tuple(tuple(Phrase(**phrase) for phrase in caption) for caption in value["phrases"]),
    )


def _check(value: dict, seen: dict[str, int], path: Path, number: int, *, fix: str) -> None:
    """Raise InputError unless `value` is a whole row about an image that is not yet in `seen`; then note it there."""
    problem = _problem(value)
    if problem is None and value["image_id"] in seen:
        problem = f"image_id {value['image_id']!r} was already given on line {seen[value['image_id']]}"
    if problem:
        raise InputError(problem, where=f"{path} line {number}", fix=fix)
    seen[value["image_id"]] = number


def _problem(value: dict) -> str | None:
    problem = _keys_problem(value, ("image_id", "boxes", "labels", "phrases"))
    if problem:
        return problem
    if not isinstance(value["image_id"], str) or not value["image_id"]:
        return f"'image_id' must be text that isn't empty, not {value['image_id']!r}"
    for key in ("boxes", "labels", "phrases"):
        if not isinstance(value[key], list):
            return f"{key!r} must be a list, not {value[key]!r}"
    if len(value["boxes"]) != len(value["labels"]):
        return f"{len(value['boxes'])} boxes but {len(value['labels'])} labels"
    for index, box in enumerate(value["boxes"]):
        problem = box_problem(box)
        if problem:
            return f"'boxes[{index}]' {problem}"
    for index, label in enumerate(value["labels"]):
        if not isinstance(label, dict) or not all(isinstance(text, str) for text in label.values()):
            return f"'labels[{index}]' must map names to texts, not {label!r}"
        if any("\ud800" <= character <= "\udfff" for text in (*label, *label.values()) for character in text):
            return f"'labels[{index}]' has half of a surrogate pair, in {label!r}"
    for caption, phrases in enumerate(value["phrases"]):
        if not isinstance(phrases, list):
            return f"'phrases[{caption}]' must be a list, not {phrases!r}"
        for index, phrase in enumerate(phrases):
            problem = phrase_problem(phrase, objects=len(value["boxes"]))
            if problem:
                return f"'phrases[{caption}][{index}]': {problem}"
    return None


def box_problem(box: Any) -> str | None:
    """What is wrong with one JSON box; None if it is four finite numbers with x1 <= x2 and y1 <= y2."""
    if not (isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) and isfinite(x) for x in box)):
        return f"must be four numbers x1, y1, x2, y2, not {box!r}"
    if box[0] > box[2] or box[1] > box[3]:
        return f"must have x1 <= x2 and y1 <= y2, not {box!r}"
    return None


def phrase_problem(phrase: Any, *, objects: int, length: int | None = None) -> str | None:
    """What is wrong with one JSON phrase about one of `objects` objects, in a caption of `length` characters."""
    if not isinstance(phrase, dict):
        return f"a phrase must be an object, not {phrase!r}"
    problem = _keys_problem(phrase, ("start", "end", "object", "kind"))
    if problem:
        return problem
    for key in ("start", "end", "object"):
        if type(phrase[key]) is not int:
            return f"{key!r} must be a whole number, not {phrase[key]!r}"
    if not 0 <= phrase["start"] < phrase["end"] or (length is not None and phrase["end"] > length):
        return f"characters {phrase['start']} to {phrase['end']} are not in the caption"
    if not 0 <= phrase["object"] < objects:
        return f"'object' {phrase['object']} is not one of the image's {objects} objects"
    if phrase["kind"] not in KINDS:
        return f"'kind' must be one of {', '.join(KINDS)}, not {phrase['kind']!r}"
    return None


def _keys_problem(value: dict, keys: tuple[str, ...]) -> str | None:
    for key in value:
        if key not in keys:
            return f"unknown key {key!r} (there are {', '.join(keys)})"
    for key in keys:
        if key not in value:
            return f"key {key!r} is missing"
    return None
