"""Format `flat`: a file an image, ``{id}.flat.npy``, of rows of a box and a feature."""

import io

import numpy as np

from extract.exchange.files import FilesSource
from extract.exchange.source import Record
from manifests.imported import FORMATS


@FORMATS.add("flat")
class Flat(FilesSource):
    pattern = "*.flat.npy"

    @staticmethod
    def recognises(root):
        return root.is_dir() and any(root.glob("*.flat.npy"))

    def key(self, path):
        return path.name.removesuffix(".flat.npy")

    def record(self, path, data, beside):
        rows = np.load(io.BytesIO(data), allow_pickle=False)
        return Record(rows[:, 4:], rows[:, :4], tuple(rows[:, 2:4].max(0)))

    @staticmethod
    def write(folder, rows, store, *, advance):
        for row in rows:
            found = store.read(store.row(row.id))
            np.save(folder / f"{row.id}.flat.npy", np.concatenate([found.boxes, np.float32(found.features)], 1))
            advance()
