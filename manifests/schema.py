"""The manifest: one JSON row an image, in the data set's own order, that every later stage reads instead of pictures.

A row has exactly the keys of `ImageRow`. Both writing and reading check every row, so that what is on disk is valid.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from manifests.errors import InputError
from manifests.files import write_text
from manifests.jsonl import read_rows
from manifests.names import id_problem

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a data set.

    Parameters
    ----------
    id : unique in the manifest; names the image in every later store.
    path : the picture, relative to the image root, with forward slashes.
    sha256 : of the picture's bytes, hex; where regions are imported, of their files' sha256 and its place in them.
    width, height : upright size in pixels (after EXIF orientation); both None where the header can't be read (the
        region stage reports such a picture) or where imported files don't say.
    split : "train", "val" or "test".
    captions : the image's captions, in the source's order; may be empty.
    """

    id: str
    path: str
    sha256: str
    width: int | None
    height: int | None
    split: str
    captions: tuple[str, ...]


_KEYS = tuple(field.name for field in fields(ImageRow))


def write_manifest(path: Path, rows: Iterable[ImageRow]) -> None:
    """Write `rows` in their order as JSON Lines with sorted keys, atomically. Raises InputError for an invalid row."""
    lines, seen = [], {}
    for number, row in enumerate(rows, 1):
        value = {key: getattr(row, key) for key in _KEYS} | {"captions": list(row.captions)}
        _check(value, seen, Path(path), number, fix="mend the code or the source that made this row")
        lines.append(json.dumps(value, sort_keys=True, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


def read_manifest(path: Path) -> list[ImageRow]:
    """Read and check a manifest. Raises InputError that names the file, the line and what to do."""
    rows, seen, fix = [], {}, "run the manifest stage again"
    for number, value in read_rows(path, fix=fix):
        _check(value, seen, Path(path), number, fix=fix)
        rows.append(ImageRow(**{**value, "captions": tuple(value["captions"])}))
    return rows


def _check(value: dict, seen: dict[str, int], path: Path, number: int, *, fix: str) -> None:
    """Raise InputError unless `value` is a whole row whose id is not yet in `seen` (id -> line); then note it there."""
    problem = _problem(value)
    if problem is None and value["id"] in seen:
        problem = f"id {value['id']!r} was already given on line {seen[value['id']]}"
    if problem:
        raise InputError(problem, where=f"{path} line {number}", fix=fix)
    seen[value["id"]] = number


def _problem(value: dict) -> str | None:
    """What is wrong with a row's keys and values; None if nothing is."""
    for key in value:
        if key not in _KEYS:
            return f"unknown key {key!r} (a row has {', '.join(_KEYS)})"
    for key in _KEYS:
        if key not in value:
            return f"key {key!r} is missing"
    for key in ("id", "path", "sha256", "split"):
        if not isinstance(value[key], str) or not value[key]:
            return f"{key!r} must be text that isn't empty, not {value[key]!r}"
    if problem := id_problem(value["id"]):
        return problem
    if value["path"].startswith("/") or "\\" in value["path"] or ".." in value["path"].split("/"):
        return f"'path' must be relative to the image root, with forward slashes and no '..', not {value['path']!r}"
    if re.search("[\0\ud800-\udfff]", value["path"]):
        return f"'path' {value['path']!r} has a character that no file's name can have"
    if not re.fullmatch("[0-9a-f]{64}", value["sha256"]):
        return f"'sha256' must be 64 hex digits, not {value['sha256']!r}"
    if value["split"] not in SPLITS:
        return f"'split' must be one of {', '.join(SPLITS)}, not {value['split']!r}"
    for key in ("width", "height"):
        if value[key] is not None and (type(value[key]) is not int or value[key] < 1):
            return f"{key!r} must be a whole number of pixels above 0, or null, not {value[key]!r}"
    if (value["width"] is None) != (value["height"] is None):
        return "'width' and 'height' must both be known or both be null"
    if not isinstance(value["captions"], list):
        return f"'captions' must be a list of texts, not {value['captions']!r}"
    for index, caption in enumerate(value["captions"]):
        if not isinstance(caption, str) or not caption.strip():
            return f"'captions[{index}]' must be text that isn't empty, not {caption!r}"
    return None
