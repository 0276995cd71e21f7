"""`selfalign rows`: rows of a manifest for people, as JSON Lines or as an aligned table."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from manifests.errors import InputError
from manifests.tables import Manifest

_SHOWN = 12  # digits of a sha256 in a table


def chosen(manifest: Manifest, *, split: str | None, id: str | None, count: int, captions: bool) -> list[dict]:
    """The first `count` rows (0: all) of a split, or the one with an id; with their captions where these are asked for.

    Raises InputError where there is none.
    """
    numbers = np.arange(len(manifest)) if split is None else manifest.rows_in(split)
    if id is not None:
        row = manifest.row_of(id)
        numbers = numbers[numbers == (-1 if row is None else row)]
    if not len(numbers):
        asked = "no image" + (f" {id!r}" if id is not None else "") + (f" of split {split}" if split else "")
        raise InputError(f"there is {asked}", where=manifest.place, fix="see `selfalign rows` without options")
    numbers = numbers[: count or None]
    found = []
    for number, image in zip(numbers.tolist(), manifest.images_at(numbers), strict=True):
        names = ("id", "split", "path", "sha256", "width", "height")
        row = {"row": number} | {name: getattr(image, name) for name in names}
        if captions:
            row["captions"] = manifest.captions_of(number)
            ids = manifest.caption_ids(*manifest.first_caption[number : number + 2].tolist())
            row |= {} if set(ids) <= {None} else {"caption_ids": ids}
        found.append(row)
    return found


def as_json(rows: Sequence[dict]) -> Iterator[str]:
    """A line a row."""
    return (json.dumps(row, ensure_ascii=False) for row in rows)


def as_table(rows: Sequence[dict]) -> Iterator[str]:
    """A head and a line a row, its captions below it, each with its id where it has one."""
    names = [name for name in rows[0] if name not in ("captions", "caption_ids")]
    cells = [names, *([_cell(name, row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for number, line in enumerate(cells):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        row = rows[number - 1] if number else {}
        texts = row.get("captions", ())
        for text, id in zip(texts, row.get("caption_ids") or [None] * len(texts), strict=True):
            yield f"    {_plain(text)}" + ("" if id is None else f"  [{id}]")


def _cell(name: str, value: Any) -> str:
    return "-" if value is None else value[:_SHOWN] if name == "sha256" else _plain(str(value))


def _plain(text: str) -> str:
    """On one line, without what a terminal would obey."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
