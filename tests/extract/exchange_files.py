"""A small data set of known numbers, its export, and its import: what the tests of exchange formats share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from extract.exchange import export, manifest
from extract.settings import ImportSettings
from extract.stages import import_regions as regions
from extract.stores.recipe import write_recipe
from extract.stores.regions import INDEX, SCHEMA, Regions, RegionStore, region_index, write_shard
from manifests.files import sha256, write_json
from manifests.imported import write_source
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest

SPLITS = ("train",) * 5 + ("val",) * 2 + ("test",) * 3
NAMES = [f"thing {number:02d}" for number in range(12)]
SINGLE = {"butd-tsv": "regions.tsv", "lxmert-tsv": "regions.tsv"}


@dataclass(frozen=True)
class DataSet:
    """A folder with `manifest` and `regions`."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest"

    @property
    def rows(self) -> list[CaptionedImage]:
        return list(Manifest.open(self.manifest).captioned)

    @property
    def store(self) -> RegionStore:
        return RegionStore(self.folder / "regions")

    def regions(self) -> dict[str, Regions]:
        store = self.store
        return {image_id: store.regions(row) for row, image_id in enumerate(store.ids)}

    def export(self, format: str, out: Path, **options: Any) -> Path:
        export.run(
            format=format,
            dataset=self.folder.name,
            manifest=self.manifest,
            regions=self.folder / "regions",
            tokens=self.folder / "tokens",
            out=out,
            **options,
        )
        return out


@dataclass(frozen=True)
class Import:
    """Files to import into `out`, and the parameters of the two stages."""

    format: str
    images: Path
    out: Path
    captions: Path | None = None
    source: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def _given(self) -> dict[str, Any]:
        settings = ImportSettings(**self.settings)
        return settings.given | {"precision": settings.precision}

    def manifest(self) -> None:
        manifest.run(
            images=self.images,
            captions=self.captions or self.images,
            format=self.format,
            out=self.out / "manifest",
            **self.source,
            **self._given,
        )

    def regions(self, **options: Any) -> None:
        regions.run(
            dataset="imported",
            manifest=self.out / "manifest",
            images=self.images,
            settings=ImportSettings(**self.settings),
            out=self.out / "regions",
            staging=self.out / "staging",
            **options,
        )

    def run(self) -> DataSet:
        self.manifest()
        self.regions()
        return DataSet(self.out)


def write_data_set(
    folder: Path,
    *,
    counts: tuple[int, ...] = (6,) * len(SPLITS),
    dim: int = 8,
    labels: bool = True,
    dtype: str = "float16",
    captions: int = 5,
    scale: float = 1.0,
) -> DataSet:
    """Write images of random regions, `counts` of them, in shards of 4, and their manifest."""
    rng = np.random.default_rng(5)
    rows, found = [], []
    for number, (split, count) in enumerate(zip(SPLITS, counts, strict=True)):
        width, height = 300 + 10 * number, 200 + number
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
        boxes = (corners * [width, height, width, height]).astype(np.float32)
        labelled = {
            "objects_id": rng.integers(0, len(NAMES), count).astype(np.int32),
            "objects_conf": rng.uniform(0, 1, count).astype(np.float32),
            "attrs_id": rng.integers(0, 4, count).astype(np.int32),
            "attrs_conf": rng.uniform(0, 1, count).astype(np.float32),
        }
        features = (scale * rng.standard_normal((count, dim))).astype(dtype)
        found.append(Regions(features, boxes, (width, height), **(labelled if labels else {})))
        texts = tuple(f"Caption {k} of image {number}, “é”." for k in range(captions))
        path = f"a folder/{1000 + number}.jpg"
        rows.append(CaptionedImage(f"{1000 + number}", path, "0" * 64, width, height, split, texts))
    write_manifest(folder / "manifest", rows)
    write_source(folder / "manifest", None)
    store = folder / "regions"
    recipe = {"format": {"schema": SCHEMA, "features": dtype}, "detector": {"name": "a test"}}
    recipe_hash = write_recipe(store, recipe)
    dense = counts[0] if len(set(counts)) == 1 else None
    done = []
    for first in range(0, len(rows), 4):
        path, part = store / f"{first // 4:06d}.h5", slice(first, first + 4)
        ids = [row.id for row in rows[part]]
        write_shard(path, ids, found[part], recipe_hash, dim=dim, dense=dense, id_bytes=8)
        done.append({"file": path.name, "count": len(ids), "first": ids[0], "last": ids[-1], "sha256": sha256(path)})
    names = {"object_names": NAMES if labels else None, "attribute_names": ["a", "b", "c", "d"] if labels else None}
    write_json(store / INDEX, region_index(done, dim=dim, dense=dense, **names))
    return DataSet(folder)


def way_back(format: str, exported: Path, out: Path, **settings: Any) -> Import:
    """The import of what `DataSet.export` wrote."""
    if format == "scan":
        settings.setdefault("boxes", "xyxy")
    captions = None if format in ("scan", "wds") else exported / "captions.json"
    return Import(format, exported / SINGLE.get(format, "."), out, captions, settings=settings)
