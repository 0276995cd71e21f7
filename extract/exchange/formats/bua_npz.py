"""bottom-up-attention.pytorch's files: one `{image id}.npz` an image with x, bbox, num_bbox, image_h, image_w, info.

`x` float32 ``[R, D]``, `bbox` ``[R, 4]`` absolute (x1, y1, x2, y2). `info` is a pickled dict with classes: the other
keys are read as plain arrays, and `info` only when asked, without running it (`manifests.unpickle`). OpenVQA and MCAN
have the same as `{file name}.npz` with `x` ``[D, R]``, which is turned.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from extract.exchange.files import Archive, FilesSource, labels_of, pickled
from extract.exchange.source import LABELS, Record
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.imported import FORMATS
from manifests.opening import read_file
from manifests.schema import ImageRow

_FIX = "leave out `regions.info`"


@FORMATS.add("bua-npz")
class BuaSource(FilesSource):
    """Reads all `*.npz` of a folder."""

    options = frozenset({"info"})
    pattern = "*.npz"

    @staticmethod
    def recognises(root: Path) -> bool:
        first = next(root.glob("*.npz"), None) if root.is_dir() else root if root.suffix == ".npz" else None
        try:
            with Archive(read_file(first), first) as archive:
                return "x" in archive and "bbox" in archive
        except (TypeError, OSError, InputError):
            return False

    def record(self, path: Path, data: bytes, side_files: list[bytes]) -> Record:
        with Archive(data, path) as archive:
            features, boxes = archive.array("x"), archive.array("bbox")
            rows = archive.count("num_bbox", least=0)
            if features.ndim == 2 and len(features) != rows and features.shape[1] == rows:
                features = np.ascontiguousarray(features.T)
            for name, array in (("x", features), ("bbox", boxes)):
                if array.ndim != 2 or len(array) != rows or array.dtype.kind != "f":
                    raise InputError(
                        f"num_bbox is {rows}, and {name} is {array.dtype} {list(array.shape)}",
                        where=path,
                        fix="give x [num_bbox, D] and bbox [num_bbox, 4] of floating-point numbers",
                    )
            size = archive.count("image_w"), archive.count("image_h")
            labels = {}
            if self.given.get("info"):
                where = f"{path} info"
                info = pickled(archive.member("info"), where, f"don't trust this file, or {_FIX}")
                labels = labels_of(info, rows, where, _FIX)
        return Record(features, boxes, size, labels)

    @staticmethod
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
