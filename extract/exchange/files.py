"""Files of one image each: the base of such formats."""

import hashlib
import io
import os
import re
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from extract.exchange.source import LABELS, Found, Record, Source, files_in
from extract.stores import npy
from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.opening import MOST_ROW, open_file
from manifests.source import LeftOut
from manifests.unpickle import unpickle

FIX = "fetch or export the file again: it may have been cut off"
NO_SIZES = "no boxes: put COCO's annotations, with the pictures' widths and heights, beside the files to have them"
_MOST_FILE = 2**28  # bytes of one image's file
_MOST_RATIO = 1032  # deflate makes no more bytes of one


class FilesSource(Source):
    """Reads all files of a folder that have the pattern `files`; a place is the number of the file, by name.

    `files` of a survey holds one sha256 for all of them: that of the text that ``sha256sum`` prints, sorted by name.
    The files that `side_files` names are included.
    """

    pattern: ClassVar[str]

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        self.paths = [path for path in files_in(self.folder(), self.pattern) if self.takes(path)]
        if not self.paths:
            raise InputError(f"there is no {self.pattern}", where=root, fix="check `source.images`")

    def folder(self) -> Path:
        """Where the files are."""
        return self.root

    def takes(self, path: Path) -> bool:
        """Whether a file has an image's features."""
        return True

    def side_files(self, path: Path) -> list[Path]:
        """Other files of the same image."""
        return []

    def key(self, path: Path) -> str:
        """The name of a file's image."""
        return path.stem

    @abstractmethod
    def record(self, path: Path, data: bytes, side_files: list[bytes]) -> Record:
        """The regions in a file. Raises InputError."""

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        whole = hashlib.sha256()
        for number, path in enumerate(self.paths):
            try:
                contents = self._contents(path)
            except InputError as error:
                yield LeftOut("row", error, self.key(path))
                continue
            for each, data in contents:
                whole.update(_listed(each, data))
                advance(len(data))
            try:
                record = self.record(path, contents[0][1], [data for _, data in contents[1:]])
            except InputError as error:
                yield LeftOut("row", error, self.key(path))
                continue
            size = record.size and (int(record.size[0]), int(record.size[1]))
            yield Found(self.key(path), str(path), (number,), len(record.features), size, lambda found=record: found)
        self.files[self.pattern] = whole.hexdigest()

    def hash_again(self, advance: Callable[[int], object]) -> dict[str, str]:
        whole = hashlib.sha256()
        for path in self.paths:
            try:
                contents = self._contents(path)
            except InputError:
                continue
            for each, data in contents:
                whole.update(_listed(each, data))
                advance(len(data))
        return {self.pattern: whole.hexdigest()}

    def where(self, place: list[int]) -> str:
        return str(self.paths[place[0]]) if place[0] < len(self.paths) else f"{self.root} file {place[0]}"

    def read(self, place: list[int]) -> Record:
        if place[0] >= len(self.paths):
            raise InputError(
                "there are fewer files than the manifest knows", where=self.root, fix="run the manifest stage again"
            )
        (path, data), *others = self._contents(self.paths[place[0]])
        return self.record(path, data, [other for _, other in others])

    def _contents(self, path: Path) -> list[tuple[Path, bytes]]:
        return [(each, _bytes(each)) for each in (path, *self.side_files(path))]


class Archive:
    """The arrays of one .npz."""

    def __init__(self, data: bytes, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except Exception as error:  # zipfile raises whatever a damaged archive leads it to
            raise InputError(f"not a whole .npz ({error})", where=path, fix=FIX) from None

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return f"{name}.npy" in self._zip.namelist()

    def member(self, name: str) -> bytes:
        """The bytes of an array's file."""
        try:
            found = self._zip.getinfo(f"{name}.npy")
            if found.file_size > min(MOST_ROW, _MOST_RATIO * found.compress_size + _MOST_RATIO):
                raise ValueError(f"it claims to unpack to {found.file_size:,} bytes")
            if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is compressed in a way that NumPy doesn't write")
            with self._zip.open(found) as member:
                return member.read(found.file_size)  # so many, whatever it would unpack to
        except KeyError:
            raise InputError(f"it has no {name!r}", where=self.path, fix=FIX) from None
        except Exception as error:  # zlib and zipfile raise whatever a damaged file leads them to
            raise InputError(f"{name!r} can't be unpacked ({error})", where=self.path, fix=FIX) from None

    def array(self, name: str) -> np.ndarray:
        """An array of numbers."""
        return npy.parse(self.member(name), f"{self.path} {name}", fix=FIX)

    def count(self, name: str, least: int = 1) -> int:
        """A whole number, written as an array of one."""
        value = self.array(name)
        if value.size != 1 or value.dtype.kind not in "iu" or value.item() < least:
            raise InputError(f"{name} is {value!r}, not a whole number", where=self.path, fix=FIX)
        return value.item()


def pickled(data: bytes, where: str, fix: str) -> dict[str, Any]:
    """The dictionary in a .npy of one pickled object, read without running it. Raises InputError."""
    stream = io.BytesIO(data)
    try:
        np.lib.format.read_magic(stream)
        np.lib.format.read_array_header_1_0(stream)
        value = unpickle(stream)
    except Exception as error:  # `Refused`, or whatever a damaged header leads NumPy to
        raise InputError(f"its object can't be read ({error})", where=where, fix=fix) from None
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, dict):
        raise InputError("its object is no dict", where=where, fix=fix)
    return value


def labels_of(info: dict[str, Any], rows: int, where: str, fix: str) -> dict[str, np.ndarray]:
    """Those of `LABELS` that a dictionary has. Raises InputError where one isn't ``[rows]`` numbers."""
    found = {name: numbers(info[name]) for name in LABELS if name in info}
    for name, values in found.items():
        if values.shape != (rows,) or values.dtype.kind not in "iuf":
            message = f"{name} is {values.dtype} {list(values.shape)}, and num_bbox is {rows}"
            raise InputError(message, where=where, fix=fix)
    return found


def numbers(value: Any) -> np.ndarray:
    """An array, or a flat list of numbers as one; any other value is an array of objects."""
    if isinstance(value, np.ndarray):
        return value
    flat = isinstance(value, list | tuple) and all(isinstance(x, int | float | np.number) for x in value)
    return np.asarray(value) if flat else np.empty((), object)


def sizes_of(folder: Path) -> dict[int, tuple[int, int]]:
    """Number of an image -> (width, height), of a folder's JSON files that list images with id, width and height. Such
    files are COCO's annotations, and the cocotalk.json of self-critical."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        value = parse_json(read_utf8(path), path=path, fix="move the file away: it isn't needed here")
        for image in value.get("images") or () if isinstance(value, dict) else ():
            numbers = [image.get(key) for key in ("id", "width", "height")] if isinstance(image, dict) else []
            if numbers and all(type(number) is int for number in numbers):
                found[numbers[0]] = (numbers[1], numbers[2])
    return found


def number_of(name: str) -> int | None:
    """The number at the end of an image's name: 9 of COCO_train2014_000000000009."""
    found = re.search(r"(\d+)$", name)
    return int(found[1]) if found else None


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
