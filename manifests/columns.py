"""Other people's tables and JSON: separators, and the names of an image, its captions, its split and its id."""

import csv
import difflib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifests.errors import InputError
from manifests.jsonl import lines_or_errors
from manifests.opening import MOST_ROW
from manifests.source import LeftOut, SourceCaption, SourceImage

_SEPARATORS = ",;\t|"
ROLES = {
    "image": (
        *("image", "file_name", "filename", "image_name", "file_path", "filepath", "image_path", "img_path", "path"),
        *("file", "img", "image_file", "picture", "photo"),
    ),
    "caption": (
        *("captions", "caption", "text", "texts", "comment", "sentences", "sentence", "description", "raw"),
        "description_en",
    ),
    "split": ("split", "set", "subset", "partition"),
}
IDS = ("image_id", "img_id", "id", "cocoid", "key")
SPLITS = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validation", "dev", "minival"),
    "test": ("test", "testing", "testall"),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
"""What others call a split -> its name."""


def split_header(header: str) -> tuple[str, list[str]]:
    """The separator of a table's header line (comma, semicolon, tab or bar), and its fields."""
    separator = max(_SEPARATORS, key=header.count)
    return separator, next(csv.reader([header], delimiter=separator), [])


Line = str | InputError
"""Of a table; an error in the place of one that is not UTF-8."""


def table_lines(path: Path) -> list[Line]:
    """The lines of a table, for the csv module, which takes "\\r" for the end of one too."""
    parts = (
        [line] if isinstance(line, InputError) else io.StringIO(line, newline="") for line in lines_or_errors(path)
    )
    return [part for each in parts for part in each]


def table_rows(
    lines: Sequence[Line], first: int, separator: str, where: object, fix: str
) -> Iterator[tuple[int, list[str] | InputError]]:
    """The rows of a table: the number of each one's line, counted from 1, and its fields.

    Line `first` is the first one that is read, counted from 0.

    A line that is not UTF-8 has an error in the place of fields. So has a row that can't be read, such as one with a
    quote that doesn't end. Reading goes on behind it.
    """
    csv.field_size_limit(MOST_ROW)
    # Kaggle's bars stand between fields that aren't quoted.
    quoting = csv.QUOTE_NONE if separator == "|" else csv.QUOTE_MINIMAL
    while first < len(lines):
        line = lines[first]
        if isinstance(line, InputError):
            yield first + 1, line
            first += 1
            continue
        begin, table = first, csv.reader(_texts(lines, first), delimiter=separator, strict=True, quoting=quoting)
        try:
            for fields in table:
                number, first = first + 1, begin + table.line_num
                if fields:
                    yield number, fields
        except csv.Error as error:
            message = f"not a valid table ({error})"
            yield first + 1, InputError(message, where=f"{where} line {first + 1}", fix=fix)
            first += 1


def _texts(lines: Sequence[Line], first: int) -> Iterator[str]:
    """Lines from `first` to the next one that is an error."""
    while first < len(lines) and isinstance(line := lines[first], str):
        yield line
        first += 1


def roles(names: Iterable[str], where: object, fix: str, *, ids: Iterable[str] = IDS) -> dict[str, str]:
    """Role ("image", "caption", "split", "id") -> the one of `names` that has it.

    Names are compared without case and spaces. Raises `InputError` with all that is wrong: names that are there twice,
    names that are nearly known ones, and where captions, or image and id, are lacking.
    """
    spelt: dict[str, str] = {}
    wrong = []
    for name in names:
        key = name.strip().lower().replace(" ", "_").replace("-", "_")
        if key in spelt:
            wrong.append(f"column {name.strip()!r} is there twice")
        spelt[key] = name
    aliases = {**ROLES, "id": tuple(ids)}
    if not spelt.keys().isdisjoint(aliases["id"]):  # beside an id, `photo` need not be a file
        aliases["image"] = tuple(name for name in ROLES["image"] if name != "photo")
    found = {role: spelt[name] for role, known in aliases.items() for name in reversed(known) if name in spelt}
    known = {name for names in aliases.values() for name in names} | set(IDS)
    needed = ("caption",) if "id" in found else ("image", "caption")
    role_of = {name: role for role in ("split", *needed) if role not in found for name in ROLES[role]}
    meant = set()
    for key, name in spelt.items():
        if key not in known and (close := difflib.get_close_matches(key, role_of, n=1, cutoff=0.75)):
            wrong.append(f"unknown column {name.strip()!r} (did you mean {close[0]!r}?)")
            meant.add(role_of[close[0]])
    if lacking := [role for role in needed if role not in found and role not in meant]:
        listed = ", ".join(repr(name.strip()) for name in list(spelt.values())[:12])
        columns = f"columns {lacking[0]!r} and {lacking[1]!r} are" if len(lacking) > 1 else f"column {lacking[0]!r} is"
        wrong.append(f"{columns} missing among {listed}")
        others = {role: ", ".join(name for name in ROLES[role] if name != role) for role in lacking}
        fix = "; ".join([fix, *(f"{role} may be called {others[role]} too" for role in lacking)])
    if wrong:
        raise InputError("; ".join(wrong), where=where, fix=fix)
    return found


@dataclass
class Gathered:
    """Rows of a file gathered by image, in the order of their first rows."""

    file: object
    images: dict[str, SourceImage] = field(default_factory=dict)
    captions: dict[str, list[SourceCaption]] = field(default_factory=dict)

    def add(
        self,
        row: str,
        image: str,
        captions: Iterable[SourceCaption],
        *,
        id: str | None = None,
        split: str | None = None,
    ) -> Iterator[LeftOut]:
        """A row with some captions of an image; nothing, or why it can't be taken."""
        first = self.images.setdefault(image, SourceImage(row, id, image, split, ()))
        for key, here, there in (("id", id, first.id), ("split", split, first.split)):
            if here != there:
                problem = f"image {image!r} has {key} {here!r} here and {there!r} on {first.row}"
                fix = f"give an image the same {key} in all its rows"
                yield LeftOut("conflict", InputError(problem, where=f"{self.file} {row}", fix=fix), here)
                return
        self.captions.setdefault(image, []).extend(captions)

    def all(self) -> Iterator[SourceImage]:
        """The images with all their captions."""
        for image, first in self.images.items():
            captions = tuple(self.captions.get(image, ()))
            yield SourceImage(first.row, first.id, first.path, first.split, captions)
