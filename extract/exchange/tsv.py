"""Rows of tab-separated files whose fields are base64 of arrays, as bottom-up-attention, LXMERT and Oscar write them.

Files are read line by line; fields are far beyond what the csv module accepts.
"""

import binascii
import codecs
import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from extract.exchange.source import Bytes, Found, Record, Source, files_in
from extract.stores.regions import Regions, RegionStore
from manifests.errors import InputError
from manifests.jsonl import split_lines
from manifests.opening import open_file
from manifests.schema import ImageRow
from manifests.source import LeftOut

FILE = "regions.tsv"  # as we write it
FIX = "fetch or export the file again: it may have been cut off"
# Python's own syntax of whole numbers takes 1_2 for 12. No array has a count of more digits than these.
_WHOLE = re.compile(rb"(-?[0-9]{1,18})(\.0*)?")
# bottom-up-attention's adaptive features are published in parts: NAME.tsv.0, NAME.tsv.1, ...
_TABLES = ("*.tsv", "*.tsv.[0-9]", "*.tsv.[0-9][0-9]")

_PACKED = b"\x1f\x8b"

_SAMPLE, _FEW = 8192, 64  # numbers by which their type is recognised; fewer are not enough


class Line(NamedTuple):
    """A row that isn't blank: its number from 0, its place in bytes without line end, its bytes, and file and row."""

    row: int
    offset: int
    length: int
    content: bytes
    where: str


def lines(path: Path, files: dict[str, str], advance: Callable[[int], object]) -> Iterator[Line]:
    """All rows of a file; at the end its sha256 is in `files` under its name."""
    whole = hashlib.sha256()
    try:
        with open_file(path, buffering=2**20) as file:
            for row, (offset, line) in enumerate(split_lines(file, path, what="row", first=0)):
                whole.update(line)
                content = line.rstrip(b"\r\n")
                if row == 0 and content.startswith(_PACKED):
                    raise InputError("it is packed by gzip", where=path, fix="unpack it")
                if row == 0 and content.startswith(codecs.BOM_UTF8):
                    offset, content = len(codecs.BOM_UTF8), content.removeprefix(codecs.BOM_UTF8)
                if content:
                    yield Line(row, offset, len(content), content, f"{path} row {row}")
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
    """A field that is a whole number in decimal digits; 100.0 is one too."""
    if not (found := _WHOLE.fullmatch(field)):
        raise InputError(f"{name} must be a whole number, not {_shown(field)}", where=where, fix=FIX)
    value = int(found[1])
    if value < least:
        raise InputError(f"{name} is {value}, below {least}", where=where, fix=FIX)
    return value


def array(
    field: bytes, name: str, where: str, dtype: str, rows: int, width: int | None, *, sizes: tuple[int, ...] = ()
) -> np.ndarray:
    """A base64 field as ``[rows, width]``, or ``[rows]`` where `width` is 0; None takes the width from the length.

    sizes : other bytes of a number. One is taken if the field's length fits it and all numbers are 0 or from 0.001 to
    100,000. Of a field that Python 3 wrote as `b'...'` the text inside is read. Raises InputError for broken base64 and
    for a length that doesn't fit `rows`.
    """
    if field[:2] in (b"b'", b'b"') and field[-1:] == field[1:2]:
        field = field[2:-1]
    try:
        data = binascii.a2b_base64(field, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name} is not whole base64 ({error})", where=where, fix=FIX) from None
    kind = np.dtype(dtype)
    if width is not None and rows and len(data) in (rows * (width or 1) * size for size in sizes):
        other = np.dtype(f"<{kind.kind}{len(data) // (rows * (width or 1))}")
        with np.errstate(all="ignore"):
            size = np.abs(np.frombuffer(data, other))
        kind = other if ((size == 0) | ((size >= 1e-3) & (size <= 1e5))).all() else kind
    columns = len(data) // (rows * kind.itemsize) if width is None and rows else width or 1
    if len(data) != rows * columns * kind.itemsize:
        expected = f"{rows} x {columns}" if width else str(rows)
        raise InputError(
            f"num_boxes is {rows}, but {name} has {len(data) / kind.itemsize:g} numbers, which isn't {expected}"
            if width is not None
            else f"num_boxes is {rows}, which doesn't divide the {len(data) / kind.itemsize:g} numbers of {name}",
            where=where,
            fix=FIX,
        )
    flat = np.frombuffer(data, kind)
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


class NumberType:
    """Recognises base64 of float16 or float64 by the first rows' numbers, which were read as float32.

    Raises InputError from `observe`, or at last from `end`, unless the type is given (`regions.dtype`).
    """

    def __init__(self, given: str | None):
        self.dtype = {"float16": "<f2", "float64": "<f8"}.get(given or "", "<f4")
        self._undecided = given is None
        self._seen: list[np.ndarray] = []
        self._count = 0

    def observe(self, values: np.ndarray, where: str) -> None:
        """Collect numbers of an image's features, until they suffice to decide the type."""
        if self._undecided:
            self._seen.append(values.reshape(-1)[:_SAMPLE])
            self._count += self._seen[-1].size
            if self._count >= _SAMPLE:
                self.end(where)

    def end(self, where: str) -> None:
        """Decide the format by the rows that were read."""
        self._undecided, seen = False, self._seen
        if seen and (other := other_type(np.concatenate(seen))):
            raise InputError(
                f"the features are {other} in base64, where this format has float32",
                where=where,
                fix=f"set `regions.dtype: {other}`, or `regions.dtype: float32` if they are float32 all the same",
            )


def other_type(values: np.ndarray) -> str | None:
    """The type "float16" or "float64" of numbers that were read as float32, if they plainly are of it; else None.

    The second half of a true float32 number is the end of a mantissa: read as float16, it has any exponent. Two float16
    numbers have like exponents. Every second half of float64 numbers is such a mantissa, and so no plausible float32.
    """
    low, high = values.view("<u2").reshape(-1, 2).T
    if np.count_nonzero(low & 0x3FF) >= max(_FEW, 0.5 * np.count_nonzero(low)):
        exponents = [(half[half & 0x7FFF != 0] >> 10 & 31).astype(np.int64) for half in (low, high)]
        finite = all(each.size >= _FEW and each.max() < 31 for each in exponents)
        if finite and abs(exponents[0].mean() - exponents[1].mean()) < 2 and exponents[0].std() < 4:
            return "float16"
    if values.size % 2 == 0 and values.size >= _FEW:
        with np.errstate(all="ignore"):
            if _plausible(values.view("<f8")) > 0.99 and _plausible(values) < 0.9 and _plausible(values[1::2]) > 0.99:
                return "float64"
    return None


def _plausible(values: np.ndarray) -> float:
    """Which part of the numbers that aren't zero a network may have put out."""
    size = np.abs(values[values != 0])
    return float(((size > 1e-9) & (size < 1e6)).mean()) if size.size else 0.0


class TsvSource(Source):
    """Reads one file, or all `*.tsv` and `*.tsv.N` of a folder, with a row an image.

    A place is (file, row, offset, length).

    fields : the number of a row's fields. `head`, `record` and `row` of a format read them.
    """

    options = frozenset({"dtype"})
    fields: ClassVar[int]

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        self.paths = sorted(files_in(root, *_TABLES), key=_by_number)
        self._files = [Bytes(path, FIX) for path in self.paths]
        self._numbers = NumberType(given.get("dtype"))

    @classmethod
    def recognises(cls, root: Path) -> bool:
        try:
            first = sorted(files_in(root, *_TABLES), key=_by_number)[0]
            cls.heading(next(_rows(first, {}, lambda _: None)))
        except (InputError, StopIteration):
            return False
        return True

    @classmethod
    def heading(cls, line: Line) -> tuple[str, tuple[int, int], int, list[bytes]]:
        """Key, (width, height), number of regions and all fields of a row. Raises InputError."""
        fields = split(line.content, cls.fields, line.where)
        return *cls.head(fields, line.where), fields

    @staticmethod
    @abstractmethod
    def head(fields: list[bytes], where: str) -> tuple[str, tuple[int, int], int]:
        """Key, (width, height) and number of regions of a row. Raises InputError, as `record` does."""

    @abstractmethod
    def record(self, fields: list[bytes], where: str, size: tuple[int, int], boxes: int) -> Record:
        """The regions of a row whose head is known."""

    @staticmethod
    @abstractmethod
    def row(found: Regions, where: Path) -> list[str]:
        """The fields of an image's regions but for its id. Raises InputError where the format needs more."""

    @classmethod
    def write(
        cls, folder: Path, rows: Sequence[ImageRow], store: RegionStore, *, advance: Callable[[], object]
    ) -> None:
        """Write `rows`, which `store` has, to `folder`/regions.tsv. Raises InputError as `row` does."""
        with open(folder / FILE, "w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                fields = cls.row(store.read(store.row(row.id)), store.folder)
                file.write("\t".join([id_field(row.id, store.folder), *fields]) + "\n")
                advance()

    def sizes(self) -> tuple[int, ...]:
        """Bytes of a number that boxes and labels may have beside the usual."""
        return (2, 4, 8) if self._numbers.dtype == "<f2" else (4, 8)

    def features(self, field: bytes, where: str, boxes: int) -> np.ndarray:
        """The features of a row, ``[boxes, D]``."""
        return array(field, "features", where, self._numbers.dtype, boxes, None)

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        for number, file in enumerate(self._files):
            where = str(file.path)
            for line in _rows(file.path, self.files, advance):
                where, key = line.where, None
                try:
                    key, size, boxes, fields = self.heading(line)
                    record = self.record(fields, where, size, boxes)
                except InputError as error:
                    yield LeftOut("row", error, key or _key(line.content))
                    continue
                self._numbers.observe(record.features, where)
                place = (number, line.row, line.offset, line.length)
                yield Found(key, where, place, boxes, size, lambda found=record: found)
            self._numbers.end(where)

    def where(self, place: list[int]) -> str:
        return f"{self._files[place[0]].path} row {place[1]}"

    def read(self, place: list[int]) -> Record:
        where = self.where(place)
        content = self._files[place[0]].read(*place[2:], where)
        _, size, boxes, fields = self.heading(Line(place[1], *place[2:], content, where))
        return self.record(fields, where, size, boxes)


def _rows(path: Path, files: dict[str, str], advance: Callable[[int], object]) -> Iterator[Line]:
    """`lines` without a header, which some write: names in the place of fields."""
    for line in lines(path, files, advance):
        if line.row or line.content.rpartition(b"\t")[2].strip().lower() != b"features":
            yield line


def _key(content: bytes) -> str | None:
    """The image of a row that can't be read, where its first field is whole."""
    first, tab, _ = content.partition(b"\t")
    try:
        return first.decode("utf-8") if tab else None
    except UnicodeDecodeError:
        return None
