"""`selfalign verify` of a teacher store: each file's sha256, its vectors' lengths, and its manifest.

Nothing that a damaged store holds raises: all of it becomes findings.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from extract.check.findings import Verification, add_unlisted, read_index, reason, recipe_holds
from extract.stores.hdf5 import MappedHDF5
from extract.stores.intact import INDEX
from extract.stores.teachers import FAILURES, SIDES, TeacherIndex, TeacherShard, TeacherStore
from manifests.errors import InputError
from manifests.files import sha256
from manifests.progress import progress
from manifests.schema import ImageRow
from manifests.tables import manifest_sha256

# Of float16: half a unit in the last place of every number.
_ROUNDING = 2e-3


def verify_teachers(found: Verification, rows: Sequence[ImageRow] | None) -> None:
    """Add all findings of a teacher store; `rows` are the manifest's, or None without one."""
    found.holds = ("images", "captions", "vectors")
    if not recipe_holds(found):
        return
    index = read_index(found, TeacherIndex)
    if index is None:
        return
    add_unlisted(found, "*.h5", (shard.file for shard in index.shards))
    for side, count in (("images", index.images), ("captions", index.captions)):
        counted = sum(shard.count for shard in index.shards if shard.of == side)
        if counted != count:
            found.add(INDEX, f"{side} is {count}, its shards add up to {counted}")
    failed = _failed(found)
    with progress(what="verify", unit="vectors", total=index.images + index.captions) as bar:
        for side in SIDES:
            first = 0
            for shard in (shard for shard in index.shards if shard.of == side):
                for row, what in _wrong(found, shard, getattr(index.dims, side)):
                    # A caption of zeros has no word that its teacher knows; failures.jsonl lists such images.
                    image = rows[first + row] if rows is not None and side == "images" and row is not None else None
                    if what != _ZERO or (side == "images" and (image is None or image.id not in failed)):
                        found.add(shard.file, what, row, image.id if image else None)
                first += shard.count
                found.shards += 1
                bar.update(shard.count)
    found.images, found.captions = index.images, index.captions
    found.vectors = index.images + index.captions
    if rows is not None and found.manifest and manifest_sha256(found.manifest) != index.manifest_sha256:
        found.add(INDEX, f"made of another manifest than {found.manifest}")


_ZERO = "the vector is all zeros"


def _wrong(found: Verification, shard: TeacherShard, dim: int) -> Iterator[tuple[int | None, str]]:
    """(row, mistake) of one shard."""
    path = found.store / shard.file
    try:
        digest = sha256(path)
        if digest != shard.sha256:
            yield None, f"sha256 is {digest}, {INDEX} says {shard.sha256}: the file has changed"
        vectors = MappedHDF5(path)["embeddings"]
        if vectors.dtype != np.float16 or vectors.shape != (shard.count, dim):
            yield None, f"embeddings are {vectors.dtype} {list(vectors.shape)}, not float16 {[shard.count, dim]}"
            return
    except FileNotFoundError:
        yield None, f"the file is missing, {INDEX} lists it with {shard.count} {shard.of}"
        return
    except Exception as error:  # h5py raises whatever a damaged file leads it to
        yield None, f"can't be read: {reason(error)}"
        return
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    for row in np.flatnonzero(~(np.abs(lengths - 1) <= _ROUNDING)).tolist():
        length = lengths[row]
        yield row, _ZERO if length == 0 else f"the vector's length is {length:.4f}, not 1"


def _failed(found: Verification) -> set[str]:
    try:
        return set(TeacherStore(found.store).failures())
    except (InputError, KeyError, TypeError) as error:
        found.add(FAILURES, reason(error))
        return set()
