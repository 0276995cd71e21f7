"""Rows of tab-separated files whose fields are base64 of arrays, as bottom-up-attention, LXMERT and Oscar write them.

Files are read line by line; fields are far beyond what the csv module accepts.
"""

import binascii
import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from extract.exchange.source import Bytes, Found, Record, Source, files_in
from manifests.errors import InputError
from manifests.jsonl import split_lines
from manifests.opening import open_file

FIX = "fetch or export the file again: it may have been cut off"
# Python's own syntax of whole numbers takes 1_2 for 12. No array has a count of more digits than these.
_WHOLE = re.compile(rb"-?[0-9]{1,18}")
# bottom-up-attention's adaptive features are published in parts: NAME.tsv.0, NAME.tsv.1, ...
_TABLES = ("*.tsv", "*.tsv.[0-9]", "*.tsv.[0-9][0-9]")


class Line(NamedTuple):
    """A row that isn't blank: its number from 0, its place in bytes without line end, its fields."""

    row: int
    offset: int
    length: int
    fields: list[bytes]


def lines(path: Path, fields: int, files: dict[str, str], advance: Callable[[int], object]) -> Iterator[Line]:
    """All rows of a file, which must have so many fields; at the end its sha256 is in `files` under its name."""
    whole = hashlib.sha256()
    try:
        with open_file(path, buffering=2**20) as file:
            for row, (offset, line) in enumerate(split_lines(file, path, what="row", first=0)):
                whole.update(line)
                content = line.rstrip(b"\r\n")
                if content:
                    yield Line(row, offset, len(content), split(content, fields, f"{path} row {row}"))
                advance(len(line))
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", where=path, fix="check the path") from error
    files[path.name] = whole.hexdigest()


def split(content: bytes, fields: int, where: str) -> list[bytes]:
    """The fields of a row. Raises InputError where they aren't as many."""
    found = content.split(b"\t")
    if len(found) != fields:
        raise InputError(f"{len(found)} fields instead of {fields}", where=where, fix=FIX)
    return found


def text(field: bytes, name: str, where: str) -> str:
    """A field that is text and not empty."""
    try:
        value = field.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{name} is not UTF-8", where=where, fix="save the file as UTF-8") from None
    if not value.strip():
        raise InputError(f"{name} is missing", where=where, fix="give every row its image")
    if "\0" in value:
        raise InputError(f"{name} has bytes of zero: the file is damaged here", where=where, fix=FIX)
    return value


def count(field: bytes, name: str, where: str, *, least: int = 0) -> int:
    """A field that is a whole number in decimal digits."""
    if not _WHOLE.fullmatch(field):
        raise InputError(f"{name} must be a whole number, not {_shown(field)}", where=where, fix=FIX)
    value = int(field)
    if value < least:
        raise InputError(f"{name} is {value}, below {least}", where=where, fix=FIX)
    return value


def array(field: bytes, name: str, where: str, dtype: str, rows: int, width: int | None) -> np.ndarray:
    """A base64 field as ``[rows, width]``, or ``[rows]`` where `width` is 0; None takes the width from the length.

    Raises InputError for broken base64 and for a length that doesn't go with `rows`.
    """
    try:
        data = binascii.a2b_base64(field, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name} is not whole base64 ({error})", where=where, fix=FIX) from None
    size = np.dtype(dtype).itemsize
    columns = len(data) // (rows * size) if width is None and rows else width or 1
    if len(data) != rows * columns * size:
        wanted = f"{rows} x {columns}" if width else str(rows)
        raise InputError(
            f"num_boxes is {rows}, but {name} has {len(data) / size:g} numbers, which isn't {wanted}"
            if width is not None
            else f"num_boxes is {rows}, which doesn't divide the {len(data) / size:g} numbers of {name}",
            where=where,
            fix=FIX,
        )
    flat = np.frombuffer(data, dtype)
    return flat if width == 0 else flat.reshape(rows, columns)


def encoded(values: np.ndarray, dtype: str) -> str:
    """An array as a base64 field."""
    return binascii.b2a_base64(np.ascontiguousarray(values, dtype).tobytes(), newline=False).decode()


def id_field(image_id: str, where: object) -> str:
    """An image id as a field. Raises InputError for one that would break the row."""
    if any(character in image_id for character in '\t\r\n"') or image_id != image_id.strip():
        raise InputError(
            f"image id {image_id!r} can't stand in a tab-separated file",
            where=where,
            fix="export scan or wds, or give the images ids without tabs, line ends and quotes",
        )
    return image_id


def _by_number(path: Path) -> list[tuple[str, int]]:
    """The parts of a name and its numbers, for an order in which 2 comes before 10."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(text, int(number or 0)) for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True)]


def _shown(field: bytes) -> str:
    return repr(field[:40].decode("utf-8", "backslashreplace"))


class TsvSource(Source):
    """Reads one file, or all `*.tsv` and `*.tsv.N` of a folder, with a row an image.

    A place is (file, row, offset, length).

    fields : how many a row has. A format says what they hold in `head` and `record`.
    """

    fields: ClassVar[int]

    def __init__(self, root: Path, captions: Path | None = None):
        super().__init__(root, captions)
        self.paths = sorted(files_in(root, *_TABLES), key=_by_number)
        self._files = [Bytes(path, FIX) for path in self.paths]

    @abstractmethod
    def head(self, fields: list[bytes], where: str) -> tuple[str, tuple[int, int], int]:
        """Key, (width, height) and number of regions of a row. Raises InputError, as `record` does."""

    @abstractmethod
    def record(self, fields: list[bytes], where: str, size: tuple[int, int], boxes: int) -> Record:
        """The regions of a row whose head is known."""

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found]:
        for number, file in enumerate(self._files):
            for line in lines(file.path, self.fields, self.files, advance):
                where = f"{file.path} row {line.row}"
                key, size, boxes = self.head(line.fields, where)
                yield Found(key, where, (number, line.row, line.offset, line.length), boxes, size)

    def where(self, place: list[int]) -> str:
        return f"{self._files[place[0]].path} row {place[1]}"

    def read(self, place: list[int]) -> Record:
        where = self.where(place)
        fields = split(self._files[place[0]].read(*place[2:], where), self.fields, where)
        _, size, boxes = self.head(fields, where)
        return self.record(fields, where, size, boxes)
