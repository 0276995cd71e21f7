"""M2's `coco_detections.hdf5`: `{id}_features` ``[R, D]``, `{id}_boxes` ``[R, 4]``; its `{id}_cls_prob` isn't read.

Boxes are absolute (x1, y1, x2, y2). The sizes of the pictures are written nowhere: they are taken from JSON files
beside it, COCO's annotations; without one, regions have no boxes. Source: Cornia et al., "Meshed-Memory Transformer"
(CVPR 2020).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import h5py
import numpy as np

from extract.exchange.files import NO_SIZES, number_of, sizes_of
from extract.exchange.source import Found, Record, Source
from manifests.errors import InputError
from manifests.files import sha256
from manifests.imported import FORMATS
from manifests.opening import MOST_ROW
from manifests.source import LeftOut

_FIX = "fetch the file again: it may have been cut off"
_FEATURES, _BOXES = "_features", "_boxes"
_SUFFIXES = (".hdf5", ".h5")


@FORMATS.add("coco-detections")
class CocoDetections(Source):
    """Reads the file, or the one file of a folder; a place is the number of the image, by name."""

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        path = _file(self.root)
        if path is None:
            raise InputError("there is no .hdf5", where=root, fix="check `source.images`, the path of the regions")
        self.paths, self._lock = [path], Lock()
        try:
            self._file = h5py.File(path, "r", locking=False)
            names = sorted(name for name in self._file if name.endswith(_FEATURES))
        except Exception as error:  # h5py raises whatever a damaged file leads it to
            raise InputError(f"no whole HDF5 file ({_first(error)})", where=path, fix=_FIX) from None
        self._keys = [name.removesuffix(_FEATURES) for name in names]
        if not self._keys:
            raise InputError(f"it has no ID{_FEATURES}", where=path, fix="give M2's coco_detections.hdf5")
        self._sizes = sizes_of(path.parent)
        self.boxes = "xyxy" if self._sizes and f"{self._keys[0]}{_BOXES}" in self._file else None
        if not self.boxes:
            self.notes.append(NO_SIZES)

    @staticmethod
    def recognises(root: Path) -> bool:
        path = _file(root)
        try:
            with h5py.File(path, "r", locking=False) as file:
                return any(name.endswith(_FEATURES) for name in file)
        except Exception:
            return False

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        self.files[self.paths[0].name] = sha256(self.paths[0], advance)
        for number, key in enumerate(self._keys):
            where = self.where([number])
            try:
                record = self.read([number])
            except InputError as error:
                yield LeftOut("row", error, key)
                continue
            yield Found(key, where, (number,), len(record.features), record.size, lambda found=record: found)

    def where(self, place: list[int]) -> str:
        key = self._keys[place[0]] if place[0] < len(self._keys) else place[0]
        return f"{self.paths[0]} row {key}"

    def read(self, place: list[int]) -> Record:
        if place[0] >= len(self._keys):
            message = "there are fewer images than the manifest knows"
            raise InputError(message, where=self.paths[0], fix="run the manifest stage again")
        key, where = self._keys[place[0]], self.where(place)
        features = self._array(f"{key}{_FEATURES}", where)
        if not self.boxes:
            return Record(features, None, None)
        size = self._sizes.get(number_of(key))
        if size is None:
            message = "no JSON file beside it has the width and height of its picture"
            raise InputError(
                message, where=where, fix="give COCO's annotations of all pictures, or move the JSON files away"
            )
        return Record(features, self._array(f"{key}{_BOXES}", where), size)

    def _array(self, name: str, where: str) -> np.ndarray:
        """A plain data set of floating-point numbers in two dimensions, in this file itself."""
        with self._lock:
            try:
                link = self._file.get(name, getlink=True)
                found = self._file[name] if isinstance(link, h5py.HardLink) else None
                if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                    raise ValueError(f"{name} is no data set of this file")
                if found.ndim != 2 or found.dtype.kind != "f" or found.nbytes > MOST_ROW:
                    raise ValueError(f"{name} is {found.dtype} {list(found.shape)}")
                return found[()]
            except Exception as error:  # h5py raises whatever a damaged file leads it to
                raise InputError(f"it can't be read ({_first(error)})", where=where, fix=_FIX) from None


def _file(root: Path) -> Path | None:
    if not root.is_dir():
        return root if root.suffix in _SUFFIXES else None
    found = sorted(path for path in root.iterdir() if path.suffix in _SUFFIXES)
    return found[0] if len(found) == 1 else None


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
