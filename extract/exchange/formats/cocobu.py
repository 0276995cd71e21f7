"""self-critical's files: `cocobu_att/{id}.npz` with `feat` ``[R, D]``, and `cocobu_box/{id}.npy` ``[R, 4]``.

Boxes are absolute (x1, y1, x2, y2). The pictures' sizes are read from JSON files beside the folders: COCO's annotations
or cocotalk.json. Without one, regions have no boxes. Source: Rennie et al., "Self-Critical Sequence Training" (CVPR
2017), in Luo's implementation.
"""

from pathlib import Path
from typing import Any

from extract.exchange.files import FIX, NO_SIZES, Archive, FilesSource, number_of, sizes_of
from extract.exchange.source import Record
from extract.stores import npy
from manifests.errors import InputError
from manifests.imported import FORMATS
from manifests.opening import read_file


@FORMATS.add("cocobu")
class CocobuSource(FilesSource):
    """Reads the `*_att` folder and the `*_box` folder beside it, below `root` or around it."""

    pattern = "*.npz"

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        self._boxes = self.folder().with_name(self.folder().name.replace("_att", "_box"))
        self._sizes = sizes_of(self.folder().parent) if self._boxes.is_dir() else {}
        self.boxes = "xyxy" if self._sizes else None
        if not self.boxes:
            self.notes.append(NO_SIZES)

    @staticmethod
    def recognises(root: Path) -> bool:
        folder = _att(root)
        first = next(folder.glob("*.npz"), None) if folder.is_dir() else None
        try:
            with Archive(read_file(first), first) as archive:
                return "feat" in archive
        except (TypeError, OSError, InputError):
            return False

    def folder(self) -> Path:
        return _att(self.root)

    def side_files(self, path: Path) -> list[Path]:
        return [self._boxes / f"{path.stem}.npy"] if self._sizes else []

    def record(self, path: Path, data: bytes, side_files: list[bytes]) -> Record:
        with Archive(data, path) as archive:
            features = archive.array("feat")
        if features.ndim != 2 or features.dtype.kind != "f":
            message = f"feat is {features.dtype} {list(features.shape)}"
            raise InputError(message, where=path, fix="give feat [R, D] of floating-point numbers")
        if not side_files:
            return Record(features, None, None)
        size = self._sizes.get(number_of(path.stem))
        if size is None:
            message = "no JSON file beside the folders has the width and height of its picture"
            raise InputError(
                message, where=path, fix="give COCO's annotations of all pictures, or move the JSON files away"
            )
        return Record(features, npy.parse(side_files[0], str(self.side_files(path)[0]), fix=FIX), size)


def _att(root: Path) -> Path:
    """The folder of the features."""
    return next(iter(sorted(root.glob("*_att"))), root) if root.is_dir() else root
