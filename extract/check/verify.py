"""`selfalign verify`: is a store whole and unchanged, and does it account for every picture of its manifest?

A region store's index and recipe are checked, and every shard's sha256, arrays, boxes and features. With a manifest,
each of its images must be in the store or in ``failures.jsonl``, once and in order (docs/architecture.md, "Stores").
Other stores are checked in `extract.check.pack`. One shard is open at a time. Damage in a store never raises: all of it
becomes findings.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from extract.check.findings import Verification, read_index, reason
from extract.check.pack import verify_pack, verify_text_features, verify_tokens
from extract.check.teachers import verify_teachers
from extract.stores.fields import LABELS
from extract.stores.hdf5 import MappedHDF5
from extract.stores.intact import INDEX, how_to_get
from extract.stores.recipe import FILE as RECIPE
from extract.stores.recipe import read_recipe
from extract.stores.regions import FAILURES, SCHEMA, RegionIndex, RegionShard, region_layout_problems
from extract.stores.teachers import FORMAT as TEACHERS
from extract.stores.text_features import FORMAT as TEXT_FEATURES
from manifests.errors import InputError
from manifests.files import sha256
from manifests.jsonl import read_rows
from manifests.progress import progress
from manifests.schema import SPLITS, CaptionedImage, ImageRow
from manifests.tables import Manifest, is_manifest

BLOCK = 2**21  # numbers of features looked at together: 4 MB
_STORES = ("regions", "tokens", "text_features", "teachers", "pack")


def stores_in(folder: Path) -> list[Path]:
    """A store itself, or the stores in a folder such as ``data/D``. Raises `InputError` if there is no store."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("there is no such folder", where=folder, fix="name the folder of a store: data/D/regions")
    if stores := _stores_of(folder):
        return stores
    if folder.absolute().name in _STORES:
        _refuse_emptied(folder)
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    for path in folders:
        if (path.name in _STORES and not _stores_of(path)) or (path.name == "manifest" and not is_manifest(path)):
            _refuse_emptied(path)
    stores = [store for path in folders for store in _stores_of(path)]
    if not stores:
        raise InputError(
            f"neither a store (it has no {INDEX}) nor a folder of stores",
            where=folder,
            fix="name the folder of a store, as data/D/regions, or of a data set, as data/D",
        )
    return stores


def _stores_of(folder: Path) -> list[Path]:
    """A store itself, or those of the splits in a folder."""
    if _is_store(folder):
        return [folder]
    splits = [folder / split for split in SPLITS if (folder / split).is_dir()]
    for split in splits:
        if not _is_store(split):
            _refuse_emptied(split)
    return splits


def _refuse_emptied(folder: Path) -> NoReturn:
    raise InputError("none of the store's files is in this folder", where=folder, fix=how_to_get(folder))


def _is_store(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in (INDEX, RECIPE, "*.h5", "*.tar"))


def run(*, store: Path, manifest: Path | None = None, limit: int = 100) -> Verification:
    """Verify a region store, the folder of its WebDataset shards, or a token, text feature or teacher store.

    Parameters
    ----------
    store : its folder.
    manifest : the manifest it was made from; by default the folder ``manifest`` of the data set's folder, if there.
    limit : how many findings are kept; all are counted.
    """
    store = Path(store)
    if manifest is None:
        beside = [folder / "manifest" for folder in store.absolute().parents[:2]]
        manifest = next((folder for folder in beside if is_manifest(folder)), None)
    found = Verification(store, manifest, limit)
    kind = kind_of_store(store)
    if kind == "pack":
        verify_pack(found, _captioned(found))
    elif kind == "tokens":
        verify_tokens(found, _captioned(found))
    elif kind == "text_features":
        verify_text_features(found)
    elif kind == "teachers":
        verify_teachers(found, _captioned(found))
    else:
        _verify_regions(found, _images(found))
    return found


def kind_of_store(store: Path) -> Literal["regions", "tokens", "text_features", "teachers", "pack"]:
    """The kind of store in a folder, by its files; regions by default."""
    if any(store.glob("*.tar")):
        return "pack"
    if (store / "tokens.h5").exists():
        return "tokens"
    format = _recipe_format(store)
    return "text_features" if format == TEXT_FEATURES else "teachers" if format == TEACHERS else "regions"


def _recipe_format(store: Path) -> Any:
    try:
        return read_recipe(store)[0].get("format")
    except (ValueError, AttributeError, RecursionError):
        return None


def _verify_regions(found: Verification, rows: Sequence[ImageRow] | None) -> None:
    recipe = _recipe(found)
    index = read_index(found, RegionIndex)
    failures = _failures(found)
    if index is None:
        return
    found.split = index.split
    _files(found, index)
    shards = _Shards(found, index, recipe, {row.id: row for row in rows or ()})
    with progress(what="verify", unit="images", total=sum(entry.count for entry in index.shards)) as bar:
        for entry in index.shards:
            shards.look_at(entry)
            bar.update(entry.count)
    if rows is not None:
        _accounted_for(found, rows, shards, failures)


def _recipe(found: Verification) -> tuple[dict[str, Any], str] | None:
    try:
        recipe, recipe_hash = read_recipe(found.store)
    except (ValueError, RecursionError) as error:
        found.add(RECIPE, reason(error))
        return None
    if isinstance(recipe, dict):
        return recipe, recipe_hash
    found.add(RECIPE, "the recipe is not a JSON object")
    return None


def _images(found: Verification) -> Sequence[ImageRow] | None:
    """The manifest's images; None without a manifest."""
    if found.manifest is None:
        return None
    try:
        return Manifest.open(found.manifest).images
    except InputError as error:
        found.add(error.where, error.what)
        return None


def _captioned(found: Verification) -> Sequence[CaptionedImage] | None:
    """The manifest's images with their captions; None without a manifest."""
    if found.manifest is None:
        return None
    try:
        return Manifest.open(found.manifest).checked().captioned
    except InputError as error:
        found.add(error.where, error.what)
        return None


def _failures(found: Verification) -> dict[str, int]:
    """Image id -> line of ``failures.jsonl``."""
    path, lines = found.store / FAILURES, {}
    try:
        for number, value in read_rows(path, fix="make the store again"):
            image_id = value.get("id")
            if not isinstance(image_id, str):
                found.add(FAILURES, f"line {number} has no id")
            elif image_id in lines:
                found.add(FAILURES, f"line {number} names it again, after line {lines[image_id]}", image_id=image_id)
            else:
                lines[image_id] = number
    except InputError as error:
        found.add(error.where, error.what)
    return lines


def _files(found: Verification, index: RegionIndex) -> None:
    listed = [entry.file for entry in index.shards]
    counts = Counter(listed)
    for name in sorted(name for name, count in counts.items() if count > 1):
        found.add(INDEX, f"lists {name} {counts[name]} times")
    for path in sorted(found.store.glob("*.h5")):
        if path.name not in counts:
            found.add(path.name, f"{INDEX} doesn't list this shard")
    counted = sum(entry.count for entry in index.shards)
    if counted != index.images:
        found.add(INDEX, f"images is {index.images}, its shards add up to {counted}")


class _Shards:
    """Checks one shard after the other, and keeps the facts on which they must agree.

    ``seen`` is each image id's place (file, row), in the store's order. ``lost`` holds the entries of shards with
    unreadable ids.
    """

    def __init__(
        self,
        found: Verification,
        index: RegionIndex,
        recipe: tuple[dict[str, Any], str] | None,
        rows: dict[str, ImageRow],
    ):
        self.found, self.index, self.rows = found, index, rows
        self.recipe_hash = recipe[1] if recipe else None
        kept = recipe[0].get("format") if recipe else None
        whole = isinstance(kept, dict) and kept.get("features") == "float32"
        self.features = "float32" if whole else "float16"
        selection = recipe[0].get("selection") if recipe else None
        bound = selection.get("max_boxes") if isinstance(selection, dict) else None
        self.max_boxes = bound if isinstance(bound, int) else None
        self.seen: dict[str, tuple[str, int]] = {}
        self.lost: list[RegionShard] = []
        self._first_labels: tuple[str, list[str]] | None = None

    def look_at(self, entry: RegionShard) -> None:
        """Add all findings of one shard."""
        path = self.found.store / entry.file
        ids = None
        try:
            digest = sha256(path)
            if digest != entry.sha256:
                self.found.add(entry.file, f"sha256 is {digest}, {INDEX} says {entry.sha256}: the file has changed")
            shard = MappedHDF5(path)
            for what in self._attributes(shard.attributes):
                self.found.add(entry.file, what)
            ids = _ids(shard)
            raws = shard["image_id"].tolist()
            for row in (row for row, raw in enumerate(raws) if raw.decode(errors="ignore") != ids[row]):
                self.found.add(entry.file, "its id is not UTF-8", row, ids[row])
            for row, what in self._places(entry, ids):
                self.found.add(entry.file, what, row, None if row is None else ids[row])
            wrong = [
                *region_layout_problems(shard, len(ids), self.index.dim, self.index.layout, self.features),
                *(self._labels(entry.file, shard) if ids else ()),
            ]
            for what in wrong:
                self.found.add(entry.file, what)
            if not wrong:
                self.found.regions += int(shard["num_boxes"].sum())
                for row, what in self._contents(shard, ids):
                    self.found.add(entry.file, what, row, ids[row])
            self.found.images += len(ids)
            self.found.shards += 1
        except FileNotFoundError:
            self.found.add(entry.file, f"the shard is missing, {INDEX} lists it with {entry.count} images")
        except Exception as error:  # h5py raises whatever a damaged file leads it to
            self.found.add(entry.file, f"can't be read: {reason(error)}")
        if ids is None:
            self.lost.append(entry)

    def _attributes(self, attributes: dict[str, Any]) -> Iterator[str]:
        if attributes.get("schema") != SCHEMA:
            yield f"its schema is {attributes.get('schema')}, not {SCHEMA}"
        if self.recipe_hash and attributes.get("recipe_hash") != self.recipe_hash:
            yield f"made by recipe {attributes.get('recipe_hash')}, {RECIPE} is {self.recipe_hash}"

    def _places(self, entry: RegionShard, ids: Sequence[str]) -> Iterator[tuple[int | None, str]]:
        """Ids against the index and the shards before; each is noted in ``seen``."""
        if len(ids) != entry.count:
            yield None, f"holds {len(ids)} images, {INDEX} says {entry.count}"
        for name, listed, row in (("first", entry.first, 0), ("last", entry.last, len(ids) - 1)):
            here = ids[row] if ids else None
            if here != listed:
                yield None, f"its {name} id is {here!r}, {INDEX} says {listed!r}"
        for row, image_id in enumerate(ids):
            if image_id in self.seen:
                file, earlier = self.seen[image_id]
                yield row, f"this image is in the store already, at {file} row {earlier}"
            else:
                self.seen[image_id] = (entry.file, row)

    def _labels(self, file: str, shard: MappedHDF5) -> Iterator[str]:
        """All shards with pictures have the same of the labels that a detector may give."""
        here = [name for name in LABELS if name in shard]
        if self._first_labels is None:
            self._first_labels = file, here
        elif here != self._first_labels[1]:
            yield f"it has the labels {here}, {self._first_labels[0]} has {self._first_labels[1]}"

    def _contents(self, shard: MappedHDF5, ids: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(row, mistake) of every picture with impossible values in its arrays. The shard's layout is right."""
        counts, sizes = shard["num_boxes"], shard["image_size"]
        dim = self.index.dim
        for row in np.flatnonzero(counts > self.max_boxes) if self.max_boxes is not None else ():
            yield int(row), f"has {counts[row]} regions, the recipe allows {self.max_boxes}"
        for row, (image_id, (width, height)) in enumerate(zip(ids, sizes.tolist(), strict=True)):
            known = self.rows.get(image_id)
            if width < 1 or height < 1:
                yield row, f"image_size is {width} x {height}"
            elif known and known.width is not None and (known.width, known.height) != (width, height):
                yield row, f"image_size is {width} x {height}, the manifest says {known.width} x {known.height}"

        owner = np.repeat(np.arange(len(ids)), counts)
        starts = np.cumsum(counts, dtype=np.int64) - counts
        bad, zero = _bad_features(shard["features"].reshape(-1, dim))
        boxes = shard["boxes"].reshape(-1, 4)
        finite = np.isfinite(boxes).all(1)
        low, high = boxes[:, :2], boxes[:, 2:]
        inside = ((low >= 0) & (low <= high) & (high <= sizes[owner])).all(1)
        flags = [
            (bad, "features are NaN or infinite"),
            (zero, "features are all zero"),
            (~finite, "boxes are NaN or infinite"),
            (finite & ~inside, "boxes are not inside the picture (0 <= x1 <= x2 <= width, y likewise)"),
        ]
        for name, own in LABELS.items():
            names = getattr(self.index, own.names) if own.names else None
            if name in shard and (names or not own.names):
                flags.append((own.outside(shard[name].ravel(), names), f"{name} are not {own.range(names)}"))
        for flagged, what in flags:
            wrong = np.flatnonzero(flagged)
            for row in np.unique(owner[wrong]).tolist():
                numbers = (wrong[owner[wrong] == row] - starts[row]).tolist()
                some = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
                yield row, f"{what}: region {some}"


def _ids(shard: MappedHDF5) -> list[str]:
    array = shard["image_id"]
    if array.dtype.kind != "S" or array.ndim != 1:
        raise TypeError(f"image_id is {array.dtype} {list(array.shape)}, not a row of fixed-length bytes")
    return [raw.decode(errors="backslashreplace") for raw in array.tolist()]


def _bad_features(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of float16 or float32 ``[rows, D]`` hold NaN or infinity, and which only zeros: two masks ``[rows]``.

    By the bits: without its sign, a number is infinite or NaN from infinity's bits on, and 0 is zero.
    """
    bits = np.dtype(f"u{features.dtype.itemsize}")
    unsigned, infinity = np.array(np.iinfo(bits).max >> 1, bits), np.array(np.inf, features.dtype).view(bits)
    largest = np.empty(len(features), bits)
    step = max(1, BLOCK // features.shape[1])
    for start in range(0, len(features), step):
        block = features[start : start + step].view(bits) & unsigned
        largest[start : start + step] = block.max(1)
    return largest >= infinity, largest == 0


def _accounted_for(found: Verification, rows: Sequence[ImageRow], shards: _Shards, failures: dict[str, int]) -> None:
    """Every image of the manifest, or of one split of it, is in the store or among the failures, once and in order."""
    manifest, split = str(found.manifest), found.split
    absent = f"the manifest has no such image{f' in split {split!r}' if split else ''}"
    number = {row.id: place for place, row in enumerate(rows)}
    lost: set[str] = set()
    for entry in shards.lost:
        if entry.first in number and entry.last in number:
            lost.update(row.id for row in rows[number[entry.first] : number[entry.last] + 1])
    for place, row in enumerate(rows):
        if row.id in shards.seen and row.id in failures:
            file, at = shards.seen[row.id]
            found.add(file, f"{FAILURES} says it could not be read, line {failures[row.id]}", at, row.id)
        elif split in (None, row.split) and row.id not in shards.seen and row.id not in failures and row.id not in lost:
            found.add(manifest, f"neither in the store nor in {FAILURES}", place, row.id)
    before = -1
    for image_id, (file, at) in shards.seen.items():
        place = number.get(image_id)
        if place is None or split not in (None, rows[place].split):
            found.add(file, absent, at, image_id)
        elif place < before:
            found.add(file, "not in the manifest's order: the image before it comes later there", at, image_id)
        before = before if place is None else place
    for image_id, line in failures.items():
        if image_id not in number:
            found.add(FAILURES, f"line {line}: {absent}", image_id=image_id)
