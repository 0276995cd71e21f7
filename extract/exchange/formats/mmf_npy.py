"""MMF's and Pythia's files: `{id}.npy` ``[R, D]`` and `{id}_info.npy`, a pickled dict.

The dict has bbox, image_width and image_height. ViLBERT has one `{id}.npy` with all of that and `features`. Boxes are
absolute (x1, y1, x2, y2). The dict is read without running it (`manifests.unpickle`). Source: Singh et al.,
"MMF" (2020), `extract_features_vmb.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from extract.exchange.files import FIX, FilesSource, numbers, pickled
from extract.exchange.source import Record
from extract.stores import npy
from manifests.errors import InputError
from manifests.imported import FORMATS
from manifests.opening import open_file

_INFO = "_info.npy"


@FORMATS.add("mmf-npy")
class MmfSource(FilesSource):
    """Reads all `*.npy` of a folder. Without boxes where the first image has no info."""

    pattern = "*.npy"

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        first = self.paths[0]
        self.boxes = "xyxy" if self._info(first).is_file() or _is_pickled(first) else None

    @staticmethod
    def recognises(root: Path) -> bool:
        names = (
            {path.name for path, _ in zip(root.glob("*.npy"), range(1000), strict=False)} if root.is_dir() else set()
        )
        return any(name.removesuffix(_INFO) + ".npy" in names for name in names if name.endswith(_INFO))

    @staticmethod
    def _info(path: Path) -> Path:
        return path.with_name(f"{path.stem}{_INFO}")

    def takes(self, path: Path) -> bool:
        return not path.name.endswith(_INFO)

    def side_files(self, path: Path) -> list[Path]:
        return [self._info(path)] if self.boxes and not _is_pickled(path) else []

    def record(self, path: Path, data: bytes, side_files: list[bytes]) -> Record:
        if side_files:
            info = pickled(side_files[0], str(self._info(path)), FIX)
            features = npy.parse(data, str(path), fix=FIX)
        elif self.boxes:
            info = pickled(data, str(path), FIX)
            features = numbers(info.get("features"))
        else:
            info, features = {}, npy.parse(data, str(path), fix=FIX)
        if features.ndim != 2 or features.dtype.kind != "f":
            message = f"its features are {features.dtype} {list(features.shape)}"
            raise InputError(message, where=path, fix="give [R, D] floating-point numbers")
        if not self.boxes:
            return Record(features, None, None)
        boxes = numbers(info.get("bbox"))
        size = tuple(_number(info.get(key)) for key in ("image_width", "image_height"))
        if boxes.ndim != 2 or boxes.dtype.kind not in "fiu" or None in size:
            message = f"bbox is {boxes.dtype} {list(boxes.shape)}, the picture's size {size}"
            raise InputError(message, where=path, fix="give an info of bbox [R, 4], image_width and image_height")
        return Record(features, boxes, size)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) else None


def _is_pickled(path: Path) -> bool:
    """Whether a .npy holds an object."""
    try:
        with open_file(path) as file:
            return b"'|O'" in file.read(128)
    except OSError:
        return False
