"""The text feature store: a frozen encoder's states of every word piece of every caption.

A data set has one folder, with shards of captions in the token store's order. Shards are ragged: the pieces of a
shard's caption c are the rows ``offsets[c]`` to ``offsets[c + 1]`` of ``states``. Pieces of a word are kept, in their
order; special tokens and punctuation are not (`TokenStore.word_pieces`).

| dataset   | shape         | holds                  |
|-----------|---------------|------------------------|
| `states`  | f16 [sum, W]  | hidden states          |
| `offsets` | i64 [C + 1]   | rows of each caption   |
"""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from extract.stores.hdf5 import MappedHDF5, layout_problems, offsets_problem, write_hdf5
from extract.stores.intact import INDEX, CountedFile, Index, read_index
from extract.stores.recipe import read_recipe_of
from extract.stores.tokens import TokenStore
from manifests.errors import InputError
from manifests.files import sha256
from manifests.typed import Count, Digest, schema

FORMAT = "selfalign-text-features"
SCHEMA = 1
_AGAIN = "run the text_features stage of this data set again"


def write_shard(path: Path, states: Sequence[np.ndarray], width: int, recipe_hash: str) -> None:
    """Write the states f16 ``[n_c, W]`` of some captions, atomically."""
    lengths = np.array([len(own) for own in states], np.int64)
    arrays = {
        "states": np.concatenate([np.empty((0, width), np.float16), *states]),
        "offsets": np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))),
    }
    write_hdf5(path, arrays, {"schema": SCHEMA, "recipe_hash": recipe_hash})


class TextIndex(Index):
    """``index.json``, as the text feature stage writes it."""

    schema_: schema(SCHEMA) = Field(alias="schema")
    captions: Count
    dim: int = Field(ge=1, le=2**20)
    tokens_sha256: Digest
    shards: list[CountedFile]


class TextFeatureStore:
    """A text feature store, read through memory maps. Picklable, and safe under fork, spawn and forkserver.

    Parameters
    ----------
    folder : the store's folder.

    Attributes
    ----------
    dim : W, length of a state.

    Raises
    ------
    InputError : it is incomplete, or of another version of this program.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.recipe, self.recipe_hash = read_recipe_of(self.folder, FORMAT, SCHEMA, _AGAIN)
        self.index = read_index(self.folder, TextIndex, _AGAIN)
        self.dim: int = self.index["dim"]
        self._shards = [MappedHDF5(self.folder / shard["file"]) for shard in self.index["shards"]]
        self._starts = np.cumsum([0, *(shard["count"] for shard in self.index["shards"])]).tolist()
        if self._starts[-1] != self.index["captions"]:
            message = f"captions is {self.index['captions']}, its shards add up to {self._starts[-1]}"
            raise InputError(message, where=self.folder / INDEX, fix=_AGAIN)
        self._checked: set[int] = set()

    def __len__(self) -> int:
        """C, captions of all splits."""
        return self._starts[-1]

    def require_tokens(self, tokens: TokenStore) -> None:
        """Raise `InputError` unless the states are those of `tokens`."""
        same = self.index["tokens_sha256"] == sha256(tokens.path / "tokens.h5")
        if not same or len(self) != tokens.num_captions:
            raise InputError(f"made of other captions or word pieces than {tokens.path}", where=self.folder, fix=_AGAIN)

    def states(self, caption: int) -> np.ndarray:
        """The states of a caption, f16 ``[N, W]``, a read-only view."""
        if not 0 <= caption < len(self):
            raise IndexError(f"{self.folder} has no caption {caption}: it has {len(self)}")
        number = bisect.bisect_right(self._starts, caption) - 1
        shard, local = self._shard(number), caption - self._starts[number]
        start, end = shard["offsets"][local : local + 2].tolist()
        return shard["states"][start:end]

    def _shard(self, number: int) -> MappedHDF5:
        shard = self._shards[number]
        if number not in self._checked:
            listed, made_by = self.index["shards"][number]["count"], shard.attributes.get("recipe_hash")
            expected = {"states": ("<f2", (None, self.dim)), "offsets": ("<i8", (listed + 1,))}
            problem = next(layout_problems(shard, expected), None) or offsets_problem(shard, "offsets", "states")
            if made_by != self.recipe_hash:
                problem = f"made by recipe {made_by}, the store's is {self.recipe_hash}"
            if problem:
                raise InputError(problem, where=shard.path, fix=_AGAIN)
            self._checked.add(number)
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])
