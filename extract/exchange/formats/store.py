"""The project's own region stores, made in another project: by `selfalign import`, or as its `data/D`.

It is a data set's folder with `regions` (docs/architecture.md, "Stores") and `manifest`, whose captions and splits are
taken; or a folder of region stores alone.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from extract.exchange.source import Found, Record, Source
from extract.stores.fields import LABELS
from extract.stores.intact import INDEX
from extract.stores.recipe import FILE as RECIPE
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.files import sha256
from manifests.imported import FORMATS
from manifests.source import LeftOut, SourceCaption, SourceImage
from manifests.tables import Manifest

_REGIONS, _MANIFEST = "regions", "manifest"


@FORMATS.add("store")
class StoreSource(Source):
    """Reads the stores of all splits as one; a place is a row of it. Its files must be those that its indexes list."""

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        self._store = RegionStore(_regions(self.root))
        self.paths = [self._store.folder / shard["file"] for shard in self._store.index["shards"]]
        self.boxes = "xyxy" if self._store.has_boxes else None
        self.precision = (self._store.recipe.get("format") or {}).get("features", "float16")

    @staticmethod
    def recognises(root: Path) -> bool:
        try:
            return root.is_dir() and bool(RegionStore(_regions(root)).index["shards"])
        except InputError:
            return False

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        self.object_names, self.attribute_names = self._store.object_names, self._store.attribute_names
        self.files = {self._name(path): sha256(path) for path in self._beside}
        rows = enumerate(zip(self._store.ids, self._store.num_boxes.tolist(), strict=True))
        for path, shard in zip(self.paths, self._store.index["shards"], strict=True):
            self.files[self._name(path)] = digest = sha256(path, advance)
            if digest != shard["sha256"]:
                fix = "restore the store, or make it again; `selfalign verify` says what is wrong with it"
                raise InputError(f"the file has changed since {INDEX} was written", where=path, fix=fix)
            for row, (id, count) in islice(rows, shard["count"]):
                size = self._store.regions(row).image_size if self.boxes else None
                yield Found(id, self.where([row]), (row,), count, size, partial(self.read, [row]))

    def hash_again(self, advance: Callable[[int], object]) -> dict[str, str]:
        beside = {self._name(path): sha256(path) for path in self._beside}
        return beside | {self._name(path): sha256(path, advance) for path in self.paths}

    @property
    def _beside(self) -> list[Path]:
        """The files that describe the shards."""
        return [folder / name for folder in self._store.folders for name in (INDEX, RECIPE)]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def where(self, place: list[int]) -> str:
        return f"{self._store.folder} row {place[0]}"

    def read(self, place: list[int]) -> Record:
        if place[0] >= len(self._store):
            message = "there are fewer images than the manifest knows"
            raise InputError(message, where=self._store.folder, fix="run the manifest stage again")
        found = self._store.regions(place[0])
        labels = {name: values for name in LABELS if (values := getattr(found, name)) is not None}
        if not self.boxes:
            return Record(found.features, None, None, labels)
        return Record(found.features, found.boxes, found.image_size, labels)

    def entries(self) -> Iterator[SourceImage] | None:
        folder = self.root / _MANIFEST
        return self._entries(folder) if self.captions == self.root and folder.is_dir() else None

    def _entries(self, folder: Path) -> Iterator[SourceImage]:
        for number, row in enumerate(Manifest.open(folder).captioned):
            ids = row.caption_ids or (None,) * len(row.captions)
            captions = (
                SourceCaption(f"row {number} caption {k}", text, None, id)
                for k, (text, id) in enumerate(zip(row.captions, ids, strict=True))
            )
            yield SourceImage(f"row {number}", row.id, row.path, row.split, tuple(captions))


def _regions(root: Path) -> Path:
    """The folder of the stores."""
    return root / _REGIONS if (root / _REGIONS).is_dir() else root
