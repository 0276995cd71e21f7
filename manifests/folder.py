"""Reads a captions file that goes with a folder of pictures: CSV, TSV or JSON Lines, told apart by suffix.

.csv, .tsv   header `image,caption` with optional `split` and `id`; one row a caption, an image may have several.
.jsonl       {"image": "a.jpg", "captions": ["...", "..."]} with optional "split" and "id"; one row an image.

`image` is the picture's path from the image root. Without `id` an image's id is its file name without the suffix.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from manifests.errors import InputError
from manifests.jsonl import read_lines, read_rows
from manifests.source import SourceCaption, SourceImage


def read(path: Path) -> Iterator[SourceImage]:
    """The images of a captions file, in the order of their first rows. Raises InputError naming line and fix."""
    suffix = Path(path).suffix.lower()
    if suffix == ".jsonl":
        yield from _read_jsonl(path)
    elif suffix in (".csv", ".tsv"):
        yield from _read_table(path, "\t" if suffix == ".tsv" else ",")
    else:
        raise InputError(
            f"captions files of kind {suffix!r} can't be read", where=path, fix="give a .csv, .tsv or .jsonl file"
        )


def _read_jsonl(path: Path) -> Iterator[SourceImage]:
    fix = 'write each line as {"image": "a.jpg", "captions": ["..."]}, with "split" and "id" if you like'
    for line, value in read_rows(path, fix=fix):
        row = f"line {line}"
        for key in value:
            if key not in ("image", "captions", "split", "id"):
                raise InputError(f"unknown key {key!r}", where=f"{path} {row}", fix=fix)
        for key in ("image", "captions"):
            if key not in value:
                raise InputError(f"key {key!r} is missing", where=f"{path} {row}", fix=fix)
        for key in ("image", "split", "id"):
            if key in value and not isinstance(value[key], str):
                raise InputError(f"{key!r} must be text, not {value[key]!r}", where=f"{path} {row}", fix=fix)
        captions = value["captions"]
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise InputError(f"'captions' must be a list of texts, not {captions!r}", where=f"{path} {row}", fix=fix)
        yield SourceImage(
            row=row,
            id=value["id"] if "id" in value else PurePosixPath(value["image"]).stem,
            path=value["image"],
            split=value.get("split"),
            captions=tuple(SourceCaption(f"{row} captions[{k}]", text) for k, text in enumerate(captions)),
        )


def _read_table(path: Path, delimiter: str) -> Iterator[SourceImage]:
    fix = "give a header line image,caption (and split, id if you like), and as many fields in every row"
    # The csv module wants to be given lines, and takes "\r" for the end of one too.
    lines = (part for line in read_lines(path) for part in io.StringIO(line, newline=""))
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    images: dict[str, tuple[str, str, str | None, list[SourceCaption]]] = {}
    header: list[str] | None = None
    start = 1
    try:
        for fields in table:
            row, start = f"line {start}", table.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _header(fields, path, row, fix)
                continue
            if len(fields) != len(header):
                problem = f"{len(fields)} fields where the header has {len(header)}"
                raise InputError(problem, where=f"{path} {row}", fix=f"{fix}; quote a caption that holds the separator")
            value = dict(zip(header, fields, strict=True))
            image, split = value["image"], value.get("split")
            id = value["id"] if "id" in value else PurePosixPath(image).stem
            first, first_id, first_split, captions = images.setdefault(image, (row, id, split, []))
            for key, here, there in (("id", id, first_id), ("split", split, first_split)):
                if here != there:
                    raise InputError(
                        f"image {image!r} has {key} {here!r} here and {there!r} on {first}",
                        where=f"{path} {row}",
                        fix=f"give an image the same {key} in all its rows",
                    )
            captions.append(SourceCaption(row, value["caption"]))
    except csv.Error as error:
        raise InputError(f"not a valid table ({error})", where=f"{path} line {start}", fix=fix) from error
    for image, (row, id, split, captions) in images.items():
        yield SourceImage(row, id, image, split, tuple(captions))


def _header(fields: list[str], path: Path, row: str, fix: str) -> list[str]:
    """The header's names, checked."""
    names = [name.strip() for name in fields]
    for name in names:
        if name not in ("image", "caption", "split", "id"):
            raise InputError(f"unknown column {name!r}", where=f"{path} {row}", fix=fix)
        if names.count(name) > 1:
            raise InputError(f"column {name!r} is there twice", where=f"{path} {row}", fix=fix)
    for name in ("image", "caption"):
        if name not in names:
            raise InputError(f"column {name!r} is missing", where=f"{path} {row}", fix=fix)
    return names
