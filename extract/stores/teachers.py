"""The teacher store: uni-modal teachers' vectors of every image and every caption of a manifest, one each.

One folder a data set. Shards of images in the manifest's order come first, then shards of captions in the manifest's
order; ``index.json`` says which a shard holds. A shard has one dataset, ``embeddings`` f16 [n, W], whose rows have
length 1. Images without a vector are rows of zeros and listed in ``failures.jsonl``; a caption of zeros has no word
that its teacher knows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from extract.stores.hdf5 import MappedHDF5, layout_problems, write_hdf5
from extract.stores.intact import INDEX, CountedFile, Index, read_index
from extract.stores.recipe import read_recipe_of
from manifests.errors import InputError
from manifests.jsonl import read_rows
from manifests.tables import manifest_sha256
from manifests.typed import Digest, Written, checked, schema

FORMAT = "selfalign-teachers"
SCHEMA = 1
FAILURES = "failures.jsonl"
Side = Literal["images", "captions"]
SIDES: tuple[Side, ...] = ("images", "captions")
_AGAIN = "run the teachers stage of this data set again"


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors ``[n, W]`` of any length, brought to length 1 (zeros stay), in float16."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float16)


def write_shard(path: Path, embeddings: np.ndarray, recipe_hash: str) -> None:
    """Write vectors f16 ``[n, W]`` of length 1 or 0, atomically."""
    write_hdf5(path, {"embeddings": embeddings}, {"schema": SCHEMA, "recipe_hash": recipe_hash})


class TeacherShard(CountedFile):
    """A shard that the index lists."""

    of: Side
    count: int = Field(ge=1, le=2**40)


class _Dims(Written):
    images: int = Field(ge=1, le=2**20)
    captions: int = Field(ge=1, le=2**20)


class _Failure(Written):
    id: str
    reason: str


class TeacherIndex(Index):
    """``index.json``, as the teachers stage writes it."""

    schema_: schema(SCHEMA) = Field(alias="schema")
    images: int = Field(ge=1, le=2**40)
    captions: int = Field(ge=1, le=2**40)
    dims: _Dims
    manifest_sha256: Digest
    shards: list[TeacherShard] = Field(min_length=2)


class TeacherStore:
    """A teacher store, read through memory maps. Picklable, and safe under fork, spawn and forkserver.

    Parameters
    ----------
    folder : the store's folder.

    Attributes
    ----------
    dims : W, length of an image's and of a caption's vector.

    Raises
    ------
    InputError : it is incomplete, or of another version of this program.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.recipe, self.recipe_hash = read_recipe_of(self.folder, FORMAT, SCHEMA, _AGAIN)
        self.index = read_index(self.folder, TeacherIndex, _AGAIN)
        self.dims: dict[Side, int] = {side: self.index["dims"][side] for side in SIDES}
        self._listed = {side: [entry for entry in self.index["shards"] if entry["of"] == side] for side in SIDES}
        self._shards = {side: [MappedHDF5(self.folder / e["file"]) for e in self._listed[side]] for side in SIDES}
        self._checked: set[tuple[Side, int]] = set()
        self._starts = {side: np.cumsum([0, *(e["count"] for e in self._listed[side])]) for side in SIDES}

        for side in SIDES:
            if self.count(side) != self.index[side]:
                message = f"{side} is {self.index[side]}, its shards add up to {self.count(side)}"
                raise InputError(message, where=self.folder / INDEX, fix=_AGAIN)

    def require_manifest(self, manifest: Path) -> None:
        """Raise `InputError` unless the vectors are those of the images and captions of `manifest`."""
        if self.index["manifest_sha256"] != manifest_sha256(manifest):
            raise InputError(f"made of another manifest than {manifest}", where=self.folder, fix=_AGAIN)

    def failures(self) -> dict[str, str]:
        """The reason of every image without a vector, by its id."""
        found = {}
        for line, value in read_rows(self.folder / FAILURES, fix=_AGAIN):
            failure = checked(value, _Failure, where=f"{self.folder / FAILURES} line {line}", fix=_AGAIN)
            found[failure.id] = failure.reason
        return found

    def count(self, side: Side) -> int:
        """How many images, or captions, of all splits there are."""
        return int(self._starts[side][-1])

    def embeddings(self, side: Side, rows: Sequence[int]) -> np.ndarray:
        """Vectors of length 1 (or 0) of some images, or captions, float32 ``[B, W]``; rows are the manifest's."""
        requested = np.asarray(rows, np.int64)
        starts = self._starts[side]
        if len(requested) and not (requested.min() >= 0 and requested.max() < starts[-1]):
            raise IndexError(f"{self.folder} has {starts[-1]} {side}, no number {requested.min()} or {requested.max()}")
        found = np.empty((len(requested), self.dims[side]), np.float32)
        numbers = np.searchsorted(starts, requested, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            found[here] = self._shard(side, number)["embeddings"][requested[here] - starts[number]]
        # float16 holds a length of 1 to three digits only.
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    def stored(self, side: Side, row: int) -> np.ndarray:
        """The vector of one image, or caption, as it is stored, float16 ``[W]``."""
        number = int(np.searchsorted(self._starts[side], row, side="right")) - 1
        return self._shard(side, number)["embeddings"][row - self._starts[side][number]]

    def _shard(self, side: Side, number: int) -> MappedHDF5:
        shard = self._shards[side][number]
        if (side, number) not in self._checked:
            listed, made_by = self._listed[side][number]["count"], shard.attributes.get("recipe_hash")
            problem = next(layout_problems(shard, {"embeddings": ("<f2", (listed, self.dims[side]))}), None)
            if made_by != self.recipe_hash:
                problem = f"made by recipe {made_by}, the store's is {self.recipe_hash}"
            elif problem is None and not np.isfinite(shard["embeddings"]).all():
                problem = "vectors are NaN or infinite"
            if problem:
                raise InputError(problem, where=shard.path, fix=_AGAIN)
            self._checked.add((side, number))
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])
