"""The manifest: two tables in the data set's own order, which every later stage reads instead of pictures.

`images.arrow` has a row an image: id, split, path, sha256 (32 bytes), width, height. `captions.arrow` has a row a
caption: the number of its image's row, its id (COCO's, else null), its text. Both have images in the same order. An
edited caption so leaves the first table as it is, and with it all that is made of pictures. An image's number takes a
third of its id's room. A caption's image and an image's captions are found without an index.

Both writing and reading check every row.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Generic, NoReturn, Self, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.arrow import Table, numbers, present, table_writer, text_bytes
from manifests.coco_ids import COCO_IDS, read_coco_ids
from manifests.errors import InputError
from manifests.files import atomic, fingerprint, sha256
from manifests.schema import AGAIN, SPLITS, CaptionedImage, ImageRow, read_jsonl, row_problem

IMAGES, CAPTIONS = "images.arrow", "captions.arrow"
OLD = "manifest.jsonl"
_IMAGES = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)
_CAPTIONS = pa.schema(
    [
        pa.field("image", pa.int32(), nullable=False),
        pa.field("caption_id", pa.int64()),
        pa.field("caption", pa.string(), nullable=False),
    ]
)
_CODES = {name: code for code, name in enumerate(SPLITS)}
_NAMES = [field.name for field in fields(CaptionedImage)]
_BLOCK = 1024  # rows read together by whoever reads one after the other
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Some images of one split that a store keeps in one file; `rows` are their numbers, int64."""

    split: str
    file: str
    rows: np.ndarray


def write_manifest(folder: Path, rows: Iterable[CaptionedImage]) -> None:
    """Write both tables into `folder`, in the order of `rows`, atomically. Raises InputError for an invalid row."""
    folder = Path(folder)
    with ExitStack() as opened:
        places = [opened.enter_context(atomic(folder / name)) for name in (IMAGES, CAPTIONS)]
        with open(places[0], "wb") as images, open(places[1], "wb") as captions:
            _write(images, captions, rows, folder)


def _write(images: IO[bytes], captions: IO[bytes], rows: Iterable[CaptionedImage], folder: Path) -> None:
    seen: dict[str, int] = {}
    with table_writer(images, _IMAGES) as image_rows, table_writer(captions, _CAPTIONS) as caption_rows:
        for number, row in enumerate(rows):
            problem = row_problem({name: getattr(row, name) for name in _NAMES})
            if problem is None and row.id in seen:
                problem = f"id {row.id!r} was already given in row {seen[row.id]}"
            if problem:
                where = f"{folder / IMAGES} row {number}"
                raise InputError(problem, where=where, fix="mend the code or the source that made this row")
            seen[row.id] = number
            image_rows.add(row.id, row.split, row.path, bytes.fromhex(row.sha256), row.width, row.height)
            ids = row.caption_ids or (None,) * len(row.captions)
            for caption_id, caption in zip(ids, row.captions, strict=True):
                caption_rows.add(number, caption_id, caption)


def images_sha256(place: Path) -> str:
    """What names the images of a manifest, and nothing of its captions: the first table's sha256 (or `OLD`'s)."""
    return _digest(_files(place)[0])


def manifest_sha256(place: Path) -> str:
    """What names all of a manifest: a hash of both tables' sha256 (or `OLD`'s own)."""
    images, captions = _files(place)
    return _digest(images) if captions is None else fingerprint([_digest(images), _digest(captions)])


def is_manifest(folder: Path) -> bool:
    """Whether there is a manifest in a folder."""
    return any((Path(folder) / name).is_file() for name in (IMAGES, OLD))


class Manifest:
    """A manifest at hand: rows are read when they are asked for, and numbered from 0.

    Attributes
    ----------
    place : its folder, for messages (the file of an older project's).
    images : its images, a sequence; a slice of it is a list.
    captioned : the same with their captions.
    splits : uint8 ``[N]``, the place of each image's split in `SPLITS`.
    id_bytes : the length of the longest id in UTF-8; 0 without images.
    """

    def __init__(self, place: Path, tables: Callable[[str, pa.Schema], Table]):
        self.place, self._tables = place, tables
        self._table = tables(IMAGES, _IMAGES)
        self.splits = np.empty(len(self._table), np.uint8)
        self.id_bytes = 0
        hashes = np.empty(len(self._table), np.int64)
        for first, batch in self._table.checked():
            part = slice(first, first + batch.num_rows)
            self.splits[part], hashes[part] = self._checked_images(first, batch)
        self._refuse_equal_ids(hashes)
        self.images: Sequence[ImageRow] = _Rows(len(self), self._read_images)
        self.captioned: Sequence[CaptionedImage] = _Rows(len(self), self._read_captioned)

    @classmethod
    def open(cls, place: Path) -> Self:
        """Open and check a manifest: a data set's folder of it, or a file of an older project.

        The table of captions is opened and checked when it is first asked for. Raises InputError that names file and
        row.
        """
        images, captions = _files(place)
        if captions is not None:
            return cls(images.parent, lambda name, schema: Table(images.with_name(name), schema, fix=AGAIN))
        sinks = {name: pa.BufferOutputStream() for name in (IMAGES, CAPTIONS)}
        _write(sinks[IMAGES], sinks[CAPTIONS], _old_rows(images), images)
        contents = {name: sink.getvalue() for name, sink in sinks.items()}
        return cls(images, lambda name, schema: Table(images, schema, fix=AGAIN, content=contents[name]))

    def __len__(self) -> int:
        return len(self._table)

    @property
    def ids(self) -> list[str]:
        """All ids in order, read anew."""
        return list(self._ids())

    def _ids(self) -> Iterator[str]:
        for part in self._table.slices(0, len(self)):
            yield from part.column("id").to_pylist()

    def row_of(self, id: str) -> int | None:
        """The number of the image with this id; None if there is none."""
        return self._first("id", pa.scalar(id, pa.string()))

    def row_of_digest(self, digest: str) -> int | None:
        """The number of the first image whose picture has this sha256; None if there is none."""
        return self._first("sha256", pa.scalar(bytes.fromhex(digest), pa.binary(32)))

    def _first(self, column: str, value: pa.Scalar) -> int | None:
        first = 0
        for part in self._table.slices(0, len(self)):
            if (found := pc.index(part.column(column), value).as_py()) >= 0:
                return first + found
            first += part.num_rows
        return None

    def rows_in(self, split: str) -> np.ndarray:
        """int64: the numbers of a split's images."""
        return np.flatnonzero(self.splits == _CODES[split])

    def shards(self, size: int) -> list["Shard"]:
        """The shards of each split's store, of up to `size` images."""
        return [
            Shard(split, f"{number:06d}.h5", rows[first : first + size])
            for split in SPLITS
            for rows in [self.rows_in(split)]
            for number, first in enumerate(range(0, len(rows), size))
        ]

    def images_at(self, rows: np.ndarray) -> Iterator[ImageRow]:
        """Some images; `rows` rise."""
        for start in range(rows[0] // _BLOCK * _BLOCK, rows[-1] + 1, _BLOCK) if len(rows) else ():
            own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + _BLOCK)] - start
            if len(own):
                block = self.images[start : start + _BLOCK]
                yield from (block[place] for place in own.tolist())

    def checked(self) -> Self:
        """Itself, after all checks of its captions too."""
        self.first_caption  # noqa: B018 (opens and checks the table)
        return self

    @property
    def num_captions(self) -> int:
        return int(self.first_caption[-1])

    @property
    def caption_counts(self) -> np.ndarray:
        """int64 ``[N]``: how many captions each image has."""
        return np.diff(self.first_caption)

    @property
    def caption_rows(self) -> np.ndarray:
        """int64 ``[C]``: the number of each caption's image."""
        return np.repeat(np.arange(len(self)), self.caption_counts)

    @cached_property
    def first_caption(self) -> np.ndarray:
        """int64 ``[N + 1]``: image n has the captions from entry n up to entry n + 1."""
        counts, before = np.zeros(len(self) + 1, np.int64), 0
        for first, batch in self._captions.checked():
            images = self._checked_captions(first, batch, before)
            counts[1 + images[0] : 2 + images[-1]] += np.bincount(images - images[0])
            before = images[-1]
        return np.cumsum(counts, out=counts)

    def texts(self, start: int, stop: int) -> list[str]:
        """Captions `start` to `stop` - 1."""
        return self._caption_column("caption", start, stop)

    def captions_of(self, row: int) -> list[str]:
        """An image's captions."""
        return self.texts(*self.first_caption[row : row + 2].tolist())

    def caption_ids(self, start: int, stop: int) -> list[int | None]:
        """COCO's own ids of captions `start` to `stop` - 1; None where the source has none."""
        return self._caption_column("caption_id", start, stop)

    def _caption_column(self, name: str, start: int, stop: int) -> list[Any]:
        parts = self.checked()._captions.slices(start, stop)
        return [value for part in parts for value in part.column(name).to_pylist()]

    @cached_property
    def _captions(self) -> Table:
        return self._tables(CAPTIONS, _CAPTIONS)

    def _read_images(self, start: int, stop: int) -> list[ImageRow]:
        return [ImageRow(*row) for row in self._columns(start, stop)]

    def _columns(self, start: int, stop: int) -> Iterator[tuple[Any, ...]]:
        for part in self._table.slices(start, stop):
            id, split, path, digest, width, height = (column.to_pylist() for column in part.columns)
            yield from zip(id, path, map(bytes.hex, digest), width, height, split, strict=True)

    def _read_captioned(self, start: int, stop: int) -> list[CaptionedImage]:
        ends = self.first_caption[start : stop + 1].tolist() if start < stop else [0]
        texts, ids = self.texts(ends[0], ends[-1]), self.caption_ids(ends[0], ends[-1])
        found = []
        for row, first, last in zip(self._columns(start, stop), ends, ends[1:], strict=False):
            own = slice(first - ends[0], last - ends[0])
            own_ids = () if all(id is None for id in ids[own]) else tuple(ids[own])
            found.append(CaptionedImage(*row, tuple(texts[own]), own_ids))
        return found

    def _checked_images(self, first: int, batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        """Split and hash of the id of some rows, after all checks of `row_problem`."""
        id, split, path, digest, width, height = batch.columns
        splits = np.fromiter((_CODES.get(name, 255) for name in split.to_pylist()), np.uint8, batch.num_rows)
        (widths, wide), (heights, high) = numbers(width), numbers(height)
        wrong = (splits == 255) | (wide != high) | (wide & (widths < 1)) | (high & (heights < 1))
        for column in (id, path, digest):
            wrong |= ~present(column)
        for doubtful in (_doubtful_ids(*text_bytes(id)), _doubtful_paths(*text_bytes(path))):
            wrong[doubtful] = True
        for place in np.flatnonzero(wrong).tolist():
            row = {name: column[place].as_py() for name, column in zip(_IMAGES.names, batch.columns, strict=True)}
            if problem := row_problem({**row, "sha256": (row["sha256"] or b"").hex()}):
                self._refuse(IMAGES, problem, first + place)
        _, ends = text_bytes(id)
        self.id_bytes = max(self.id_bytes, int(np.diff(ends).max()))
        return splits, np.fromiter(map(hash, id.to_pylist()), np.int64, batch.num_rows)

    def _refuse_equal_ids(self, hashes: np.ndarray) -> None:
        """`hashes` are sorted in place."""
        hashes.sort()
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen: dict[str, int] = {}
        for row, id in enumerate(self._ids() if twice else ()):
            if hash(id) in twice and seen.setdefault(id, row) != row:
                self._refuse(IMAGES, f"id {id!r} was already given in row {seen[id]}", row)

    def _checked_captions(self, first: int, batch: pa.RecordBatch, before: int) -> np.ndarray:
        """The images of some captions, int32, after all checks."""
        image, _, caption = batch.columns
        images, whole = numbers(image)
        for place in np.flatnonzero(~(whole & present(caption))).tolist():
            self._refuse(CAPTIONS, "'image' and 'caption' must not be null", first + place)
        wrong = np.flatnonzero((images < 0) | (images >= len(self)) | (np.diff(images, prepend=before) < 0))
        if len(wrong):
            message = f"its image is row {images[wrong[0]]}, which is not there or before that of the caption above"
            self._refuse(CAPTIONS, message, first + int(wrong[0]))
        for place in _doubtful_captions(*text_bytes(caption)).tolist():
            if not (text := caption[place].as_py()).strip():
                self._refuse(CAPTIONS, f"'caption' must be text that isn't empty, not {text!r}", first + place)
        return images

    def _refuse(self, table: str, what: str, row: int) -> NoReturn:
        raise InputError(what, where=f"{self.place / table} row {row}", fix=AGAIN)


# What few rows have, looked for in all of a column's bytes at once; `row_problem` then looks at those rows alone.


def _doubtful_ids(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Rows that are empty, or have a byte of `id_problem`'s characters in UTF-8."""
    empty = np.flatnonzero(np.diff(ends) == 0)
    return np.append(empty, _rows_with((data < 0x20) | (data == 0x7F) | (data == 0xC2) | (data == 0xE2), ends))


def _doubtful_paths(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Rows that are empty, begin with a slash, or have a backslash, a NUL or two dots."""
    dots = data == ord(".")
    dots[1:] &= dots[:-1].copy()
    dots[:1] = False
    wrong = (data == ord("\\")) | (data == 0) | dots
    starts = ends[:-1][np.diff(ends) > 0]
    wrong[starts] |= data[starts] == ord("/")
    return np.append(np.flatnonzero(np.diff(ends) == 0), _rows_with(wrong, ends))


def _doubtful_captions(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Rows without a visible ASCII character."""
    visible = np.concatenate([[0], np.cumsum((data > 0x20) & (data < 0x7F))])[ends]
    return np.flatnonzero(visible[1:] == visible[:-1])


def _rows_with(marked: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.unique(np.searchsorted(ends, np.flatnonzero(marked), side="right") - 1)


class _Rows(Sequence[R], Generic[R]):
    """Rows that are read when they are asked for."""

    def __init__(self, count: int, read: Callable[[int, int], list[R]]):
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> R: ...

    @overload
    def __getitem__(self, at: slice) -> list[R]: ...

    def __getitem__(self, at: int | slice) -> R | list[R]:
        if isinstance(at, slice):
            start, stop, step = at.indices(self._count)
            return self._read(start, max(start, stop)) if step == 1 else [self[n] for n in range(start, stop, step)]
        row = operator.index(at) + (self._count if at < 0 else 0)
        if not 0 <= row < self._count:
            raise IndexError(f"there are {self._count} rows, no row {at}")
        return self._read(row, row + 1)[0]

    def __iter__(self) -> Iterator[R]:
        for start in range(0, self._count, _BLOCK):
            yield from self._read(start, min(start + _BLOCK, self._count))


def _files(place: Path) -> tuple[Path, Path | None]:
    """The tables of a manifest; an older project's file and None."""
    place = Path(place)
    if place.is_file() and place.suffix != ".arrow":
        return place, None
    folder = place.parent if place.is_file() else place
    if not (folder / IMAGES).is_file() and (folder / OLD).is_file():
        return folder / OLD, None
    if not (folder / IMAGES).is_file():
        raise InputError(
            f"there is no manifest ({IMAGES})",
            where=folder,
            fix="make it, `dvc repro manifest@<data set>`, or fetch it: `dvc pull manifest@<data set>`",
        )
    return folder / IMAGES, folder / CAPTIONS


def _old_rows(file: Path) -> Iterator[CaptionedImage]:
    rows, coco_ids = read_jsonl(file), file.with_name(COCO_IDS)
    ids = read_coco_ids(coco_ids) if file.name == OLD and coco_ids.exists() else {}
    for row in rows:
        own = tuple(ids.get(row.id, ()))
        if own and len(own) != len(row.captions):
            message = f"{len(own)} ids of the {len(row.captions)} captions of image {row.id!r}"
            raise InputError(message, where=coco_ids, fix=AGAIN)
        yield CaptionedImage(*(getattr(row, name) for name in ImageRow.__slots__), row.captions, own)


def _digest(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise InputError(f"the file can't be read ({error.strerror})", where=file, fix=AGAIN) from error
