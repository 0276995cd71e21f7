"""Tables and JSON Lines: CSV, TSV, Kaggle's `|`, Hugging Face's metadata.jsonl.

A table has a header with a column of images and one of captions, and may have split and id; one row a caption. The
separator (comma, semicolon, tab or bar) is the header's. A line of JSON Lines is an object with the same keys; its
captions may be a list. `manifests.columns` knows other names of these columns; columns that it doesn't know aren't
read. An image is its picture's path from the image root.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manifests.columns import Gathered, roles, split_header, table_lines, table_rows
from manifests.errors import InputError
from manifests.jsonl import lines_or_errors, parse_json
from manifests.readers import READERS, Items, Preview, Reader
from manifests.source import LeftOut, SourceCaption

_HEADER = "give a header line image,caption (and split, id if you like)"
_TABLE = f"{_HEADER}, and as many fields in every row"
_LINES = 'write each line as {"image": "a.jpg", "captions": ["..."]}, with "split" and "id" if you like'
_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm)$", re.IGNORECASE)


@READERS.add("folder")
class Folder(Reader):
    """A CSV, TSV or JSON Lines file beside a folder of pictures; an id that isn't given is None."""

    title = "a table or JSON Lines"
    layout = "a CSV file with the header image,caption"

    @staticmethod
    def recognises(preview: Preview) -> bool:
        if preview.suffix == ".jsonl":
            return not preview.is_folder
        if preview.suffix in (".csv", ".tsv"):
            return not preview.is_folder
        try:
            return bool(preview.first_line) and bool(roles(split_header(preview.first_line)[1], "", ""))
        except InputError:
            return _is_lines(preview)

    @staticmethod
    def columns(path: Path) -> dict[str, str]:
        """Role -> the name of its column or key."""
        preview = Preview.at(path)
        if preview.head.startswith("{"):
            return roles(parse_json(preview.first_line, path=path, fix=_LINES), f"{path} line 1", _LINES)
        return {role: name.strip() for role, name in roles(split_header(preview.first_line)[1], path, _HEADER).items()}

    @staticmethod
    def read(path: Path) -> Items:
        preview = Preview.at(path)
        found = Gathered(path)
        yield from (
            _json_lines(path, found)
            if preview.head.startswith("{") or preview.suffix == ".jsonl"
            else _table(path, found)
        )
        yield from found.all()


def _is_lines(preview: Preview) -> bool:
    """Whether a file without a suffix of its own holds an object a line."""
    return bool(re.fullmatch(r'\{"[^{}]*\}', preview.first_line)) and bool(re.search(r"\}\s*\n\s*\{", preview.head))


def _json_lines(path: Path, found: Gathered) -> Iterator[LeftOut]:
    for number, line in enumerate(lines_or_errors(path), 1):
        if isinstance(line, InputError):
            yield LeftOut("row", line)
            continue
        if not line.strip():
            continue
        row = f"line {number}"
        try:
            value = parse_json(line.removesuffix("\n"), path=path, fix=_LINES, line=number)
            if not isinstance(value, dict):
                raise InputError("the line is not a JSON object", where=f"{path} {row}", fix=_LINES)
            yield from found.add(row, **of_object(value, path, row, _LINES))
        except InputError as error:
            yield LeftOut("row", error)


def of_object(value: dict[str, Any], path: Path, row: str, fix: str, **options: Any) -> dict[str, Any]:
    """What `Gathered.add` wants to know of a JSON object, which has its keys by the names that `roles` knows.

    Raises `InputError` for keys that are lacking, and for values of another type.
    """
    where = f"{path} {row}"
    keys = roles(value, where, fix, **options)
    texts = value[keys["caption"]]
    if isinstance(texts, str):
        texts = [texts]
    elif not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{keys['caption']!r} must be a list of texts, not {texts!r}", where=where, fix=fix)
    captions = tuple(SourceCaption(f"{row} {keys['caption']}[{k}]", text) for k, text in enumerate(texts))
    found: dict[str, Any] = {"captions": captions, "id": None}
    for role in ("image", "split", "id"):
        if role in keys:
            own = value[keys[role]]
            if role != "split" and type(own) is int:
                own = str(own)
            if not isinstance(own, str):
                raise InputError(f"{keys[role]!r} must be text, not {own!r}", where=where, fix=fix)
            found[role] = own
    found.setdefault("image", found["id"])
    return found


def _table(path: Path, found: Gathered) -> Iterator[LeftOut]:
    lines = table_lines(path)
    first, header = next(
        ((n, line) for n, line in enumerate(lines, 1) if isinstance(line, InputError) or line.strip()), (0, "")
    )
    if isinstance(header, InputError):
        raise header
    if not header:
        return
    separator, names = split_header(header.strip())
    if any(_PICTURE.search(name.strip()) for name in names):
        message = f"the first line, {header.strip()[:60]!r}, is a row of an image, and no header"
        raise InputError(message, where=f"{path} line {first}", fix="write the header image,caption above it")
    columns = {role: names.index(name) for role, name in roles(names, f"{path} line {first}", _HEADER).items()}
    for number, fields in table_rows(lines, first, separator, path, _TABLE):
        row = f"line {number}"
        if isinstance(fields, InputError):
            yield LeftOut("row", fields)
            continue
        if len(fields) != len(names):
            problem = f"{len(fields)} fields where the header has {len(names)}"
            fix = f"{_TABLE}; quote a caption that holds the separator"
            yield LeftOut("row", InputError(problem, where=f"{path} {row}", fix=fix))
            continue
        value = {role: fields[column] for role, column in columns.items()}
        if separator == "|":
            value = {role: text.strip() for role, text in value.items()}
        captions = [SourceCaption(row, value["caption"])]
        image = value.get("image", value.get("id"))
        yield from found.add(row, image, captions, id=value.get("id"), split=value.get("split"))
