"""Readers of captions as they are published, a file a kind: `READERS` has them by the name that `source.format` gives.

A reader yields an image with all its captions (`SourceImage`), or a row that can't be read (`LeftOut`). It raises
`InputError` where the whole file is useless. `recognise` gives the reader of a file or a folder, and its contents.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.opening import open_file
from manifests.registry import Registry
from manifests.source import LeftOut, SourceImage

_HEAD = 2**16  # bytes of a file by which its kind is recognised
_NAMES = 10_000  # of a folder
Items = Iterator[SourceImage | LeftOut]


@dataclass(frozen=True, slots=True)
class Preview:
    """The first bytes of a file, or the names in a folder: they decide its kind.

    head : the first 64 KB of a file as text; empty for a folder and for a file of other bytes than text's.
    names : of the files in a folder, sorted.
    """

    path: Path
    head: str
    names: list[str]

    @classmethod
    def at(cls, path: Path) -> "Preview":
        """The preview of a path. Raises `InputError` where it can't be read."""
        path = Path(path)
        try:
            if path.is_dir():
                return cls(
                    path, "", sorted(found.name for found, _ in zip(path.iterdir(), range(_NAMES), strict=False))
                )
            with open_file(path) as file:
                head = file.read(_HEAD)
        except OSError as error:
            raise InputError(f"the file can't be read ({error.strerror})", where=path, fix="check the path") from error
        return cls(path, "" if b"\0" in head else head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip(), [])

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def first_line(self) -> str:
        return self.head.partition("\n")[0].strip()


class Reader(ABC):
    """The captions files of one kind.

    title : its name for people.
    layout : what to write, an example.
    rank : readers of a higher one are asked later what they recognise.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    title: ClassVar[str]
    layout: ClassVar[str]
    rank: ClassVar[int] = 0

    @staticmethod
    @abstractmethod
    def recognises(preview: Preview) -> bool:
        """Whether a path is of this kind, by its name and its first bytes alone."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> Items:
        """The images of a captions file, in its order. Raises `InputError` naming line and fix."""


READERS: Registry[type[Reader]] = Registry("reader", "manifests.readers")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a captions file holds.

    Parameters
    ----------
    title : the kind, for people.
    pictures, captions : how many.
    captions_each : the least and the greatest number of captions of a picture.
    splits : split as written in the file -> pictures; None where the file has none.
    columns : role -> name of the column or key, of tables and lists.
    example : the path of the first picture, as written in the file.
    left_out : rows that can't be taken.
    """

    title: str
    pictures: int
    captions: int
    captions_each: tuple[int, int]
    splits: dict[str, int] | None
    columns: dict[str, str]
    example: str
    left_out: list[LeftOut]

    def text(self) -> str:
        """All of it in a sentence or two."""
        least, most = self.captions_each
        each = f"{least}" if least == most else f"{least} to {most}"
        splits = ", ".join(f"{name} {count:,}" for name, count in (self.splits or {}).items())
        description = f"{self.title}: {self.pictures:,} pictures with {each} captions"
        description += f", splits {splits}" if splits else ", without splits"
        if self.columns:
            description += f"; read as {', '.join(f'{role}: {name!r}' for role, name in self.columns.items())}"
        return description + (f"; {len(self.left_out):,} rows can't be read" if self.left_out else "")


def kind_of(path: Path) -> type[Reader]:
    """The reader that a captions file, or a folder of captions, is for.

    Raises `InputError` that describes the file and the layouts to write.
    """
    preview = Preview.at(path)
    if reader := _recognised(preview):
        return reader
    if preview.head.startswith(("{", "[")):
        parse_json(read_utf8(preview.path), path=preview.path, fix="write the file again: it may have been cut off")
    fix = "; ".join(f"{reader.title}: {reader.layout}" for reader in READERS.values() if reader.name in _WRITTEN)
    raise InputError(
        f"it is no captions file that is known: {_seen(preview)}", where=path, fix=f"write one of these: {fix}"
    )


def recognise(path: Path) -> tuple[str, Facts]:
    """The name of the reader that a path is for, and what is there; all of it is read.

    Raises `InputError` as `kind_of` and the reader do.
    """
    reader = kind_of(path)
    images, left_out = [], []
    for item in reader.read(path):
        (left_out if isinstance(item, LeftOut) else images).append(item)
    if not images:
        if left_out:
            raise left_out[0].error
        raise InputError("there are no images", where=path, fix="give a captions file with at least one image")
    counts = [len(image.captions) for image in images]
    splits = Counter(image.split for image in images)
    columns = reader.columns(path) if hasattr(reader, "columns") else {}
    return reader.name, Facts(
        title=reader.title,
        pictures=len(images),
        captions=sum(counts),
        captions_each=(min(counts), max(counts)),
        splits=None if None in splits else dict(splits),
        columns=columns,
        example=images[0].path,
        left_out=left_out,
    )


def read(path: Path, format: str | None = None) -> Items:
    """The images of a captions file of the kind `format`, or of the kind that it has."""
    reader = READERS.find(format) if format else kind_of(path)
    if format:
        _refuse_another(Path(path), reader)
    yield from reader.read(path)


_SIGNS = (  # what some files begin with, where
    (b"PAR1", 0, "a Parquet file"),
    (b"\x1f\x8b", 0, "a file packed by gzip, which is to be unpacked"),
    (b"PK\3\4", 0, "a zip archive, or what Excel writes"),
    (b"\x89PNG", 0, "a picture"),
    (b"\xff\xd8\xff", 0, "a picture"),
    (b"\xff\xfe", 0, "text of UTF-16, which is to be saved as UTF-8"),
    (b"\xfe\xff", 0, "text of UTF-16, which is to be saved as UTF-8"),
    (b"\x89HDF", 0, "an HDF5 file"),
    (b"ustar", 257, "a tar archive; of shards, give the folder"),
)
_WRITTEN = ("folder", "karpathy", "coco", "flickr")


def _refuse_another(path: Path, reader: type[Reader]) -> None:
    """Raise `InputError` where a file is plainly of another kind than `reader`'s."""
    preview = Preview.at(path)
    if reader.recognises(preview):
        return
    if other := _first(READERS.own(), preview):
        raise InputError(
            f"this is {other.title}, not {reader.title}", where=path, fix=f"set `source.format: {other.name}`"
        )


def _recognised(preview: Preview) -> type[Reader] | None:
    """The reader of a kind; those of other packages are asked where none of ours knows it."""
    return _first(READERS.own(), preview) or _first(READERS.load(), preview)


def _first(readers: dict[str, type[Reader]], preview: Preview) -> type[Reader] | None:
    return next(
        (each for each in sorted(readers.values(), key=lambda each: each.rank) if each.recognises(preview)), None
    )


def _seen(preview: Preview) -> str:
    """A description of an unknown file."""
    if preview.is_folder:
        names = ", ".join(preview.names[:5]) + (" ..." if len(preview.names) > 5 else "")
        return f"a folder with {names}" if preview.names else "an empty folder"
    if not preview.head:
        with open_file(preview.path) as file:
            start = file.read(512)
        known = next(
            (kind for sign, at, kind in _SIGNS if start[at:].startswith(sign)), "a file of other bytes than text's"
        )
        return known if start else "an empty file"
    if preview.head.startswith(("{", "[")):
        keys = list(dict.fromkeys(re.findall(r'"([^"\\]{1,40})"\s*:', preview.head)))
        return f"JSON with the keys {', '.join(keys[:8])}" if keys else "JSON without keys"
    return f"text that begins with {preview.first_line[:60]!r}"
