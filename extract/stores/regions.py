"""The region store: one folder a split, shards of HDF5 in manifest order (docs/architecture.md, "Stores").

Dense, where every picture has the same number of regions R: ``features [N, R, D]`` f16 (f32 where an import asked for
it: the recipe's format.features), ``boxes [N, R, 4]`` f32.
Ragged otherwise: ``features [sum, D]``, ``boxes [sum, 4]`` and ``offsets [N + 1]``. Always ``num_boxes [N]`` i16,
``image_size [N, 2]`` i32 as (width, height) and ``image_id [N]`` fixed-length bytes; ``objects_id/_conf`` and
``attrs_id/_conf`` where the detector gives them. Boxes are absolute (x1, y1, x2, y2) in original pixels.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from extract.stores.fields import FIELDS, LABELS, Regions
from extract.stores.hdf5 import MappedHDF5, layout_problems, offsets_problem, write_hdf5
from extract.stores.intact import INDEX, CountedFile, Index, how_to_get, read_index
from extract.stores.recipe import FILE as RECIPE
from extract.stores.recipe import read_recipe, require_same_recipe
from manifests.errors import InputError
from manifests.schema import SPLITS
from manifests.typed import Count, Written, checked, schema

SCHEMA = 1
FAILURES = "failures.jsonl"
_FIX = "run `dvc repro regions@<data set>` or `dvc pull`; `selfalign verify` says what is wrong with it"


def write_shard(
    path: Path,
    ids: Sequence[str],
    regions: Sequence[Regions],
    recipe_hash: str,
    *,
    dim: int,
    dense: int | None,
    id_bytes: int,
    features: np.ndarray | None = None,
) -> None:
    """Write one shard, atomically.

    Parameters
    ----------
    ids, regions : one entry a picture, in manifest order; none at all is a shard of no pictures.
    dim : D, the length of a feature.
    dense : R where every picture has that many regions, None for a ragged store.
    id_bytes : length of the ``image_id`` field; one for the whole store, so that equal pictures give equal bytes.
    features : the features of all `regions` in one array as the shard has them, where they lie in one already.
    """
    counts = np.array([len(r) for r in regions], np.int16)
    join = np.concatenate if dense is None else np.stack
    rows = (0,) if dense is None else (0, dense)
    if features is None:
        features = join([r.features for r in regions]) if regions else np.empty((*rows, dim), np.float16)
    arrays = {
        "features": features,
        "boxes": join([r.boxes for r in regions]) if regions else np.empty((*rows, 4), np.float32),
    }
    if dense is None:
        arrays["offsets"] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    arrays["num_boxes"] = counts
    arrays["image_size"] = np.array([r.image_size for r in regions], np.int32).reshape(-1, 2)
    arrays["image_id"] = np.array([i.encode() for i in ids], f"S{id_bytes}")
    for name in LABELS:
        if regions and getattr(regions[0], name) is not None:
            arrays[name] = join([getattr(r, name) for r in regions])
    write_hdf5(path, arrays, {"schema": SCHEMA, "recipe_hash": recipe_hash})


def region_layout_problems(shard: MappedHDF5, images: int, dim: int, layout: str, features: str) -> Iterator[str]:
    """The mistakes of dtypes, shapes, counts and offsets of a shard of `images` pictures."""
    dense = layout == "dense"
    if dense and "offsets" in shard:
        yield f"it has offsets, {INDEX} says the layout is dense"
    boxes = shard["boxes"].shape if "boxes" in shard else ()
    rows = (images, *boxes[1:2]) if dense else boxes[:1]
    expected = {
        **{name: (own.dtype, (*rows, *(n or dim for n in own.shape))) for name, own in FIELDS.items()},
        **({} if dense else {"offsets": ("<i8", (images + 1,))}),
        "num_boxes": ("<i2", (images,)),
        "image_size": ("<i4", (images, 2)),
        "image_id": ("S", (images,)),
    }
    expected["features"] = features, expected["features"][1]
    wrong = list(layout_problems(shard, expected, LABELS))
    yield from wrong
    if wrong:
        return
    counts = shard["num_boxes"]
    if dense:
        if (counts != rows[1]).any():
            yield f"num_boxes isn't {rows[1]} everywhere, as the shape of boxes says"
    elif problem := offsets_problem(shard, "offsets", "boxes"):
        yield problem
    elif (np.diff(shard["offsets"]) != counts).any():
        yield "num_boxes isn't the difference of offsets"


def shard_row(shard: MappedHDF5, row: int) -> Regions:
    """The regions of one picture of a shard, as read-only views."""
    part = slice(*shard["offsets"][row : row + 2]) if "offsets" in shard else row
    width, height = shard["image_size"][row].tolist()
    return Regions(image_size=(width, height), **{name: shard[name][part] for name in FIELDS if name in shard})


def region_index(
    done: Sequence[dict[str, Any]],
    *,
    dim: int,
    dense: int | None,
    object_names: list[str] | None,
    attribute_names: list[str] | None,
) -> dict[str, Any]:
    """The contents of ``index.json``, made of the done-markers of all shards (file, count, first, last, sha256)."""
    return {
        "schema": SCHEMA,
        "images": sum(shard["count"] for shard in done),
        "dim": dim,
        "layout": "ragged" if dense is None else "dense",
        "object_names": object_names,
        "attribute_names": attribute_names,
        "shards": [{key: shard[key] for key in ("file", "count", "first", "last", "sha256")} for shard in done],
    }


class RegionShard(CountedFile):
    """A shard that the index lists."""

    first: str | None
    last: str | None


class MeasuredNorms(Written):
    """How long the features are."""

    least: float
    mean: float
    most: float


class About(Written):
    """The licence and the citation of the pictures."""

    licence: str | None = None
    cite: str | None = None


class RegionIndex(Index):
    """``index.json``, as the region stage writes it."""

    schema_: schema(SCHEMA) = Field(alias="schema")
    split: Literal["train", "val", "test"] | None = None
    images: Count
    dim: int = Field(ge=1, le=2**20)
    layout: Literal["dense", "ragged"]
    object_names: list[str] | None
    attribute_names: list[str] | None
    shards: list[RegionShard]
    dataset: str | None = None
    about: About | None = None
    norms: MeasuredNorms | None = None


class _Format(Written):
    features: Literal["float16", "float32"]


class _Imported(Written):
    format: str
    files: dict[str, str]
    boxes: str | None


class _Selection(Written):
    min_boxes: Count = 0
    max_boxes: Count | None = None


class _Recipe(Written):
    format: _Format = _Format(features="float16")
    detector: dict[str, Any] | str | None = None
    selection: _Selection | None = None
    imported: _Imported | None = None


def read_region_recipe(folder: Path) -> tuple[dict[str, Any], str]:
    """`read_recipe` of a region store. Raises `InputError` also for a recipe of something else."""
    recipe, recipe_hash = read_recipe(folder)
    require_region_recipe(recipe, Path(folder) / RECIPE)
    return recipe, recipe_hash


def require_region_recipe(recipe: Any, where: object) -> None:
    """Raise `InputError` unless a recipe is that of regions."""
    checked(recipe, _Recipe, where=where, fix="restore the file, or make the store again")


def region_stores(folder: Path, split: str | None = None) -> list[Path]:
    """The region stores of a data set's folder ``regions``: that of `split`, or of every split that is there.

    A folder that is a store itself is the only one: a split's own folder, or all of a data set in older projects.
    Raises `InputError` where there is none.
    """
    folder = Path(folder)
    if any((folder / name).is_file() for name in (INDEX, RECIPE)):
        return [folder]
    there = [folder / name for name in SPLITS if split in (None, name) and (folder / name).is_dir()]
    if there:
        return there
    missing = folder if split is None else folder / split
    raise InputError("there is no such store", where=missing, fix=how_to_get(missing))


class RegionStore:
    """Reads the region stores of a data set as one; regions are views of a memory map, so that memory doesn't grow.

    Safe to pickle and to use after fork: every process maps the shards it touches for itself.

    Parameters
    ----------
    folder, split : which stores (`region_stores`). Rows are numbered from 0, train before val before test.

    Raises `InputError` where one isn't a whole store of this schema, and for stores of two recipes.
    """

    def __init__(self, folder: Path, split: str | None = None):
        self.folder, self.split = Path(folder), split
        self.folders = region_stores(self.folder, split)
        indices = [_read_index(store) for store in self.folders]
        (self.recipe, self.recipe_hash), *others = map(read_region_recipe, self.folders)
        for store, (recipe, _) in zip(self.folders[1:], others, strict=True):
            require_same_recipe(recipe, store, self.recipe, self.folders[0])
        alike = ("dim", "layout", "object_names", "attribute_names")
        for store, index in zip(self.folders, indices, strict=True):
            if differing := [key for key in alike if index[key] != indices[0][key]]:
                message = f"its {' and '.join(differing)} differ from those of {self.folders[0]}"
                raise InputError(message, where=store / INDEX, fix=_FIX)
        listed = [
            shard | {"file": (store / shard["file"]).relative_to(self.folder).as_posix()}
            for store, index in zip(self.folders, indices, strict=True)
            for shard in index["shards"]
        ]
        self.index: dict[str, Any] = indices[0] | {
            "images": sum(index["images"] for index in indices),
            "shards": listed,
        }
        self.dim: int = self.index["dim"]
        self.object_names: list[str] | None = self.index["object_names"]
        self.attribute_names: list[str] | None = self.index["attribute_names"]
        self._shards = [MappedHDF5(self.folder / shard["file"]) for shard in listed]
        self._starts = np.cumsum([0, *(shard["count"] for shard in listed)]).tolist()
        self._rows: dict[str, int] | None = None
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self.index["images"]

    @property
    def has_boxes(self) -> bool:
        """False for imported features without boxes: each box is all of a picture of one pixel then."""
        imported = self.recipe.get("imported")
        return imported is None or imported["boxes"] is not None

    @property
    def ids(self) -> list[str]:
        """Image ids in manifest order."""
        return list(self._row_of)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._row_of

    def row(self, image_id: str) -> int:
        """The row of an image; `InputError` where the store has none."""
        if image_id not in self._row_of:
            raise InputError(
                f"no regions of image {image_id!r}", where=self.folder, fix=f"look for its reason in {FAILURES}"
            )
        return self._row_of[image_id]

    @property
    def _row_of(self) -> dict[str, int]:
        if self._rows is None:
            ids = [id for number in range(len(self._shards)) for id in self._ids(number)]
            rows = {image_id: row for row, image_id in enumerate(ids)}
            if len(rows) < len(ids):
                twice = next(image_id for row, image_id in enumerate(ids) if rows[image_id] != row)
                message = f"image {twice!r} is in it twice"
                raise InputError(message, where=self.folder, fix="restore the store, or make it again")
            self._rows = rows
        return self._rows

    def _ids(self, number: int) -> list[str]:
        shard = self.shard(number)
        try:
            return [raw.decode() for raw in shard["image_id"].tolist()]
        except UnicodeDecodeError as error:
            raise InputError(f"an id is not UTF-8 ({error})", where=shard.path, fix="make the store again") from error

    def shard(self, number: int) -> MappedHDF5:
        """Shard `number`, checked at its first use: of this store's recipe, with as many images as the index says."""
        shard = self._shards[number]
        if number in self._checked:
            return shard
        if shard.attributes.get("recipe_hash") != self.recipe_hash:
            raise InputError(
                f"made by recipe {shard.attributes.get('recipe_hash')}, the store's is {self.recipe_hash}",
                where=shard.path,
                fix="make the store again: shards of two recipes are never mixed",
            )
        listed = self.index["shards"][number]["count"]
        problem = next(self._problems(shard, listed), None)
        if problem:
            raise InputError(problem, where=shard.path, fix="restore the shard, or make the store again")
        self._checked.add(number)
        return shard

    def _problems(self, shard: MappedHDF5, listed: int) -> Iterator[str]:
        """The mistake of a shard that should hold `listed` images; None if readers can trust its layout. `selfalign
        verify` finds more."""
        if "image_id" in shard and (found := len(shard["image_id"])) != listed:
            yield f"holds {found} images, {INDEX} lists {listed}"
        features = (self.recipe.get("format") or {}).get("features", "float16")
        wrong = list(region_layout_problems(shard, listed, self.dim, self.index["layout"], features))
        yield from wrong
        if wrong:
            return
        if (shard["image_size"] < 1).any():
            yield "image_size isn't above 0 everywhere"
        for name, own in FIELDS.items():
            if name not in shard or name == "features":
                continue
            if own.numpy.kind == "f" and not np.isfinite(shard[name]).all():
                yield f"{name} are NaN or infinite"
            names = self.index[own.names] if own.names else None
            if names and own.outside(shard[name], names).any():
                yield f"{name} are not {own.range(names)}"

    @property
    def num_boxes(self) -> np.ndarray:
        """The number of regions of every picture, int64 ``[N]``; 0 is possible in a store of detections."""
        return self._table[1]

    @property
    def feature_dtype(self) -> np.dtype:
        """Of the features, as stored; the store has a picture at least."""
        return self.shard(0)["features"].dtype

    def regions(self, row: int) -> Regions:
        """The regions of one picture, as read-only views."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store of {len(self)} images")
        number = bisect.bisect_right(self._starts, row) - 1
        return shard_row(self.shard(number), row - self._starts[number])

    def read(self, row: int) -> Regions:
        """As `regions`, but features are read past the map: a process that goes through a store doesn't grow by it."""
        found = self.regions(row)
        features = np.empty(found.features.shape, found.features.dtype)
        number = bisect.bisect_right(self._starts, row) - 1
        shard, local = self.shard(number), row - self._starts[number]
        first = int(shard["offsets"][local]) if "offsets" in shard else local * shard["boxes"].shape[1]
        shard.row_reader("features")(first, features)
        return replace(found, features=features)

    def padded(
        self, rows: Sequence[int], into: Callable[[int, np.dtype], np.ndarray] | None = np.empty
    ) -> tuple[np.ndarray | None, np.ndarray, np.ndarray, np.ndarray]:
        """The regions of B pictures, with zeros after a picture's last up to the most of them, R.

        Returns features ``[B, R, D]`` as stored, boxes float32 ``[B, R, 4]``, num_boxes int64 ``[B]`` and image_size
        int32 ``[B, 2]``. `into` gives the memory of so many numbers of a type for the features; without it there are
        none. They are read past the map: a process that reads batch after batch doesn't grow by them.
        """
        expected = np.asarray(rows)
        if expected.min() < 0 or expected.max() >= len(self):
            raise IndexError(f"rows {expected.min()} to {expected.max()} of a store of {len(self)} images")
        all_firsts, all_counts, all_sizes = self._table
        numbers, firsts, counts = self._number_of(expected), all_firsts[expected], all_counts[expected]
        most = int(counts.max())
        features = None
        if into is not None:
            dtype = self.shard(int(numbers[0]))["features"].dtype
            features = into(len(expected) * most * self.dim, dtype).reshape(len(expected), most, self.dim)
        boxes = np.zeros((len(expected), most, 4), np.float32)
        if features is not None:
            if counts.min() < most:
                features[np.arange(most) >= counts[:, None]] = 0
            flat, stride = memoryview(features.reshape(-1).view(np.uint8)), features[0].nbytes
        order, before = np.argsort(numbers, kind="stable"), None  # one shard after the other: few are open at a time
        columns = order, numbers[order], firsts[order], counts[order]
        for place, number, first, count in zip(*map(np.ndarray.tolist, columns), strict=True):
            if number != before:
                shard, before = self.shard(number), number
                shard_boxes = shard["boxes"].reshape(-1, 4)
                if features is not None:
                    read, size = shard.byte_reader("features")
            boxes[place, :count] = shard_boxes[first : first + count]
            if features is not None:
                read(first * size, flat[place * stride : place * stride + count * size])
        return features, boxes, counts, all_sizes[expected]

    def _number_of(self, rows: np.ndarray) -> np.ndarray:
        """The shard of each row."""
        return np.searchsorted(self._starts, rows, side="right") - 1

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every picture its first region among its shard's, its number of regions, and its size."""
        shards = [self.shard(number) for number in range(len(self._shards))]
        counts = [np.empty(0, np.int64), *(shard["num_boxes"].astype(np.int64) for shard in shards)]
        # Copies: a view would keep its file open.
        sizes = [np.empty((0, 2), np.int32), *(shard["image_size"].copy() for shard in shards)]
        return np.concatenate([some.cumsum() - some for some in counts]), np.concatenate(counts), np.concatenate(sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _read_index(store: Path) -> dict[str, Any]:
    index = read_index(store, RegionIndex, _FIX)
    if (counted := sum(shard["count"] for shard in index["shards"])) != index["images"]:
        message = f"images is {index['images']}, its shards add up to {counted}"
        raise InputError(message, where=store / INDEX, fix=_FIX)
    return index
