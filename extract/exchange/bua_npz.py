"""bottom-up-attention.pytorch's files: one `{image id}.npz` an image with x, bbox, num_bbox, image_h, image_w, info.

`x` float32 ``[R, D]``, `bbox` ``[R, 4]`` absolute (x1, y1, x2, y2). `info` is a pickled dict with classes: the other
keys are read as plain arrays, and `info` only when asked, without running it (`extract.stores.unpickle`).
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extract.exchange.source import LABELS, Found, Record, Source, files_in
from extract.stores import npy
from extract.stores.regions import RegionStore
from extract.stores.unpickle import unpickle
from manifests.errors import InputError
from manifests.opening import MOST_ROW, open_file
from manifests.schema import ImageRow

_FIX = "fetch or export the file again: it may have been cut off"
_ALL = "*.npz"
_MOST_FILE = 2**28  # bytes of one image's file
_MOST_RATIO = 1032  # deflate makes no more bytes of one


class BuaSource(Source):
    """Reads all `*.npz` of a folder; a place is the number of the file, by name.

    `files` holds one sha256 for all of them: that of the text that ``sha256sum *.npz`` prints, sorted by name.
    """

    format = "bua-npz"

    def __init__(self, root: Path, captions: Path | None = None, *, info: bool = False):
        super().__init__(root, captions)
        self.paths, self._info = files_in(root, "*.npz"), info

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found]:
        whole = hashlib.sha256()
        for number, path in enumerate(self.paths):
            data = _bytes(path)
            whole.update(_listed(path, data))
            with _Archive(data, path) as archive:
                size = archive.count("image_w"), archive.count("image_h")
                yield Found(path.stem, str(path), (number,), archive.count("num_bbox", least=0), size)
            advance(len(data))
        self.files[_ALL] = whole.hexdigest()

    def hash_again(self, advance: Callable[[int], object]) -> dict[str, str]:
        whole = hashlib.sha256()
        for path in self.paths:
            data = _bytes(path)
            whole.update(_listed(path, data))
            advance(len(data))
        return {_ALL: whole.hexdigest()}

    def where(self, place: list[int]) -> str:
        return str(self.paths[place[0]]) if place[0] < len(self.paths) else f"{self.root} file {place[0]}"

    def read(self, place: list[int]) -> Record:
        if place[0] >= len(self.paths):
            raise InputError(
                "there are fewer files than the manifest knows", where=self.root, fix="run the manifest stage again"
            )
        path = self.paths[place[0]]
        with _Archive(_bytes(path), path) as archive:
            features, boxes = archive.array("x"), archive.array("bbox")
            rows = archive.count("num_bbox", least=0)
            for name, array in (("x", features), ("bbox", boxes)):
                if array.ndim != 2 or len(array) != rows or array.dtype.kind != "f":
                    raise InputError(
                        f"num_bbox is {rows}, and {name} is {array.dtype} {list(array.shape)}",
                        where=path,
                        fix="give x [num_bbox, D] and bbox [num_bbox, 4] of floating-point numbers",
                    )
            size = archive.count("image_w"), archive.count("image_h")
            labels = archive.labels(rows) if self._info else {}
        return Record(features, boxes, size, labels)


class _Archive:
    """The arrays of one file."""

    def __init__(self, data: bytes, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise InputError(f"not a whole .npz ({error})", where=path, fix=_FIX) from None

    def __enter__(self) -> "_Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def _member(self, name: str) -> bytes:
        try:
            found = self._zip.getinfo(f"{name}.npy")
            if found.file_size > min(MOST_ROW, _MOST_RATIO * found.compress_size + _MOST_RATIO):
                raise ValueError(f"it claims to unpack to {found.file_size:,} bytes")
            if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is compressed in a way that NumPy doesn't write")
            with self._zip.open(found) as member:
                return member.read(found.file_size)  # so many, whatever it would unpack to
        except KeyError:
            raise InputError(f"it has no {name!r}", where=self.path, fix=_FIX) from None
        except Exception as error:  # zlib and zipfile raise whatever a damaged file leads them to
            raise InputError(f"{name!r} can't be unpacked ({error})", where=self.path, fix=_FIX) from None

    def array(self, name: str) -> np.ndarray:
        return npy.parse(self._member(name), f"{self.path} {name}", fix=_FIX)

    def count(self, name: str, least: int = 1) -> int:
        """A whole number, written as an array of one."""
        value = self.array(name)
        if value.size != 1 or value.dtype.kind not in "iu" or value.item() < least:
            raise InputError(f"{name} is {value!r}, not a whole number", where=self.path, fix=_FIX)
        return value.item()

    def labels(self, rows: int) -> dict[str, np.ndarray]:
        """Those of `LABELS` that info has."""
        where, stream = f"{self.path} info", io.BytesIO(self._member("info"))
        try:
            np.lib.format.read_magic(stream)
            np.lib.format.read_array_header_1_0(stream)
            value = unpickle(stream)
        except Exception as error:  # `Refused`, or whatever a damaged header leads NumPy to
            fix = "don't trust this file; leave out `regions.info` to read its arrays alone"
            raise InputError(f"info can't be read ({error})", where=where, fix=fix) from None
        info = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(info, dict):
            raise InputError("info is no dict", where=where, fix="leave out `regions.info`")
        found = {name: _numbers(info[name]) for name in LABELS if name in info}
        for name, values in found.items():
            if values.shape != (rows,) or values.dtype.kind not in "iuf":
                raise InputError(
                    f"{name} is {values.dtype} {list(values.shape)}, and num_bbox is {rows}",
                    where=where,
                    fix="leave out `regions.info`",
                )
        return found


def _numbers(value: Any) -> np.ndarray:
    """An array, or a flat list of numbers as one; what is neither is an array of objects."""
    if isinstance(value, np.ndarray):
        return value
    flat = isinstance(value, list | tuple) and all(isinstance(x, int | float | np.number) for x in value)
    return np.asarray(value) if flat else np.empty((), object)


def _listed(path: Path, data: bytes) -> bytes:
    """A file's line in the list that ``sha256sum`` prints."""
    return f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()


def _bytes(path: Path) -> bytes:
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_FILE:
                raise InputError(f"{size:,} bytes are no single image's", where=path, fix="check the path")
            return file.read()
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", where=path, fix="check the path") from error


def write(folder: Path, rows: Sequence[ImageRow], store: RegionStore, *, advance: Callable[[], object]) -> None:
    """Write a `{id}.npz` for each of `rows`, which `store` has; classes, if any, go into `info`.

    Raises InputError for an id that can't be a file's name.
    """
    for row in rows:
        if row.id != row.id.strip() or any(c in row.id for c in "/\\\0") or row.id.startswith("."):
            raise InputError(
                "its id can't be a file's name", where=f"image {row.id!r}", fix="export another format, such as wds"
            )
        found = store.read(store.row(row.id))
        width, height = found.image_size
        facts = {"image_id": row.id, "image_h": height, "image_w": width, "num_boxes": len(found)}
        facts |= {name: np.array(values) for name in LABELS if (values := getattr(found, name)) is not None}
        np.savez(
            folder / f"{row.id}.npz",
            x=np.asarray(found.features, np.float32),
            bbox=found.boxes,
            num_bbox=len(found),
            image_h=height,
            image_w=width,
            info=np.array(facts, dtype=object),
        )
        advance()
