"""Boxes that people have of their pictures: annotations, Flickr30K Entities, words that OCR found.

A boxes file is JSON Lines or a JSON list. A row is {"image": "a.jpg", "boxes": [[x1, y1, x2, y2], ...]} with optional
"labels", a text a box. A table with such columns, of JSON, is read too. Boxes are in pixels of the upright picture.
Other keys and columns aren't read, so that it may be the captions file; Karpathy's JSON has ``objects`` of its own.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from manifests.columns import ROLES, split_header, table_lines, table_rows
from manifests.errors import InputError
from manifests.grounding import Grounding, box_problem
from manifests.jsonl import parse_json, read_rows, read_utf8
from manifests.left_out import Sieve
from manifests.schema import ImageRow
from manifests.source import SourceImage

_FIX = 'write each row as {"image": "a.jpg", "boxes": [[x1, y1, x2, y2]]}, with "labels" if you like, a text a box'
_SHOWN = 3


def with_boxes(entries: Sequence[SourceImage], file: Path, root: Path, sieve: Sieve) -> list[SourceImage]:
    """The images of a captions file with the objects that a boxes file tells of them; none where it has no row.

    Rows name images by their paths from the image root, or by their ids. `sieve` gets those that can't be read, that
    contradict another or that are of no image of the captions file. Raises `InputError` where no row has boxes, and
    where the captions file tells objects too.
    """
    names = {entry.id: entry.path for entry in entries} | {entry.path: entry.path for entry in entries}
    found: dict[str, tuple[str, list[dict[str, Any]]]] = {}
    for row, value in _rows(file):
        where = f"{file} {row}"
        try:
            image, objects = _objects(value, where)
            path = names.get(image) or names.get(_from(root, image))
            if path is None:
                fix = "name pictures as the captions file does, by path or id, or remove the row"
                raise InputError(f"image {image!r} isn't in the captions file", where=where, fix=fix)
            if objects is not None and found.setdefault(path, (row, objects))[1] != objects:
                fix = "give the boxes of an image once"
                raise InputError(f"image {image!r} has other boxes at {found[path][0]}", where=where, fix=fix)
        except InputError as error:
            sieve.add("conflict", error)
    if not found:
        sieve.refuse()
        raise InputError("it tells of no boxes", where=file, fix="set `source.boxes` to the file that has them")
    if twice := [entry.path for entry in entries if entry.objects is not None]:
        fix = "remove them from one of the two, or set `source.boxes` to the captions file"
        raise InputError(f"the captions file tells objects too, of {_listed(twice)}", where=file, fix=fix)
    return [replace(entry, objects=found.get(entry.path, ("", []))[1]) for entry in entries]


def _from(root: Path, image: str) -> str:
    """A path from the image root on, as far as it names that."""
    path, whole = PurePosixPath(image), root.absolute().as_posix()
    if path.is_relative_to(whole):
        return str(path.relative_to(whole))
    return str(path.relative_to(root.name) if path.is_relative_to(root.name) else path)


def _objects(value: dict[str, Any], where: str) -> tuple[str, list[dict[str, Any]] | None]:
    """The image of a row and its objects, as `SourceImage` has them; None where the row tells of none."""
    image = next((value[name] for name in ROLES["image"] if name in value), None)
    if not isinstance(image, str) or not image:
        raise InputError("a row must have 'image', a text", where=where, fix=_FIX)
    boxes, labels = value.get("boxes"), value.get("labels")
    if boxes is None:
        return image, None
    if not isinstance(boxes, list):
        raise InputError(f"'boxes' must be a list, not {boxes!r}", where=where, fix=_FIX)
    for number, box in enumerate(boxes):
        if problem := box_problem(box):
            raise InputError(f"'boxes[{number}]' {problem}", where=where, fix=_FIX)
    if labels is None:
        return image, [{"box": box} for box in boxes]
    if not isinstance(labels, list) or not all(isinstance(label, str) and label.strip() for label in labels):
        raise InputError(f"'labels' must be a list of texts that aren't empty, not {labels!r}", where=where, fix=_FIX)
    if len(labels) != len(boxes):
        raise InputError(f"{len(boxes)} boxes but {len(labels)} labels", where=where, fix=_FIX)
    return image, [{"box": box, "label": label} for box, label in zip(boxes, labels, strict=True)]


def checked(rows: Iterable[ImageRow], known: dict[str, Grounding], file: Path) -> Iterator[ImageRow]:
    """The rows of a manifest, while the boxes of their pictures are checked.

    Raises InputError, after the last row, for boxes without an area inside their picture, and where some boxes have
    labels and others none.
    """
    outside, labelled, bare = [], [], []
    for row in rows:
        yield row
        found = known.get(row.id)
        for number, (box, label) in enumerate(zip(found.boxes, found.labels, strict=True) if found else ()):
            (labelled if label else bare).append(f"box {number} of image {row.id!r}")
            x1, y1, x2, y2 = box
            width, height = row.width or x2, row.height or y2  # of a picture that can't be read nothing is known
            if min(x2, width) <= max(x1, 0) or min(y2, height) <= max(y1, 0):
                outside.append(f"box {number} of image {row.id!r} ({x1:g}, {y1:g}, {x2:g}, {y2:g})")
    if outside:
        fix = "give x1, y1, x2, y2 in pixels of the upright picture, or remove these boxes"
        raise InputError(f"no area inside the picture: {_listed(outside)}", where=file, fix=fix)
    if labelled and bare:
        raise InputError(f"no label: {_listed(bare)}", where=file, fix="give every box a label, or none")


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a boxes file, with its place."""
    if (suffix := Path(file).suffix.lower()) == ".json":
        values = parse_json(read_utf8(file), path=file, fix=_FIX)
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise InputError("there is no list of rows", where=file, fix=_FIX)
        yield from ((f"[{number}]", value) for number, value in enumerate(values))
    elif suffix == ".jsonl":
        yield from ((f"line {number}", value) for number, value in read_rows(file, fix=_FIX))
    else:
        yield from _table(file)


def _table(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = table_lines(file)
    first = lines[0] if lines else ""
    if isinstance(first, InputError):
        raise first
    separator, header = split_header(first.rstrip("\r\n"))
    names = [name.strip().lower() for name in header]
    for number, fields in table_rows(lines, 1, separator, file, _FIX):
        if isinstance(fields, InputError):
            raise fields
        value: dict[str, Any] = dict(zip(names, fields, strict=False))
        for key in ("boxes", "labels"):
            if text := value.pop(key, ""):
                value[key] = parse_json(text, path=file, fix=_FIX, line=number)
        yield f"line {number}", value


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
