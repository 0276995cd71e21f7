"""`selfalign verify` of WebDataset shards, of tokens and text features: each file's sha256 and its contents.

Every sample of a shard is read with its arrays. Samples, and the captions of a token store, are compared with the
manifest if it is given. Damage in a store never raises: all of it becomes findings.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from extract.check.findings import Verification, add_unlisted, read_index, reason, recipe_holds
from extract.stores.intact import INDEX, CountedFile
from extract.stores.text_features import TextFeatureStore, TextIndex
from extract.stores.tokens import TokenIndex, TokenStore
from extract.stores.webdataset import PackedShard, PackIndex, Sample, read_samples
from manifests.errors import InputError
from manifests.files import sha256
from manifests.progress import progress
from manifests.schema import CaptionedImage


def verify_pack(found: Verification, rows: Sequence[CaptionedImage] | None) -> None:
    """Add all findings of a folder of WebDataset shards; `rows` are the manifest's, or None without one."""
    recipe_holds(found)
    index = read_index(found, PackIndex)
    if index is None:
        return
    add_unlisted(found, "*.tar", (shard.file for shard in index.shards))
    if (counted := sum(shard.count for shard in index.shards)) != index.images:
        found.add(INDEX, f"images is {index.images}, its shards add up to {counted}")
    for name, digest in index.files.items():
        _unchanged(found, name, digest, "")
    known, seen = {row.id: row for row in rows or ()}, dict.fromkeys(index.left_out, INDEX)
    whole = True
    for shard in progress(index.shards, what="verify", unit="shards"):
        whole &= _shard_unchanged(found, shard) and _read(
            found, shard, index.dim, known if rows is not None else None, seen
        )
    for place, row in enumerate(rows or ()):
        if whole and row.id not in seen:
            found.add(str(found.manifest), "neither in a shard nor left out", place, row.id)


def verify_tokens(found: Verification, rows: Sequence[CaptionedImage] | None) -> None:
    """Add all findings of a token store; `rows` are the manifest's, or None without one."""
    found.holds = ("images", "captions")
    recipe_holds(found)
    index = read_index(found, TokenIndex)
    if index is None:
        return
    add_unlisted(found, "*.h5", (shard.file for shard in index.shards))
    (file,) = index.shards
    if not _shard_unchanged(found, file):
        return
    try:
        store = TokenStore(found.store)
        captions = tuple(store.text(number) for number in range(store.num_captions))
        found.images, found.captions, found.shards = len(store.image_ids), len(captions), 1
        if len(captions) != file.count:
            found.add(file.file, f"holds {len(captions)} captions, {INDEX} says {file.count}")
        if rows is not None and store.image_ids != [row.id for row in rows]:
            found.add(file.file, "its images are not the manifest's")
        elif rows is not None and captions != tuple(caption for row in rows for caption in row.captions):
            found.add(file.file, "its captions are not the manifest's")
    except InputError as error:  # it may be about another file of the store
        named = (name for name in ("vocabulary.json", INDEX, "recipe.json") if str(found.store / name) in error.where)
        found.add(next(named, file.file), error.what)
    except Exception as error:  # as in _read
        found.add(file.file, f"can't be read: {reason(error)}")


def verify_text_features(found: Verification) -> None:
    """Add all findings of a text feature store; its captions are those of a token store, not of a manifest."""
    found.manifest, found.holds = None, ("captions",)
    recipe_holds(found)
    index = read_index(found, TextIndex)
    if index is None:
        return
    add_unlisted(found, "*.h5", (shard.file for shard in index.shards))
    if (counted := sum(shard.count for shard in index.shards)) != index.captions:
        found.add(INDEX, f"captions is {index.captions}, its shards add up to {counted}")
    whole = [_shard_unchanged(found, shard) for shard in progress(index.shards, what="verify", unit="shards")]
    if not all(whole):
        return
    try:
        store = TextFeatureStore(found.store)
        for caption in range(len(store)):
            if not np.isfinite(store.states(caption)).all():
                found.add(INDEX, f"states of caption {caption} are NaN or infinite")
        found.captions, found.shards = len(store), len(index.shards)
    except Exception as error:  # as in _read
        found.add(INDEX, f"can't be read: {reason(error)}")


def _shard_unchanged(found: Verification, file: CountedFile | PackedShard) -> bool:
    return _unchanged(found, file.file, file.sha256, f" with {file.count}")


def _unchanged(found: Verification, name: str, listed: str, holding: str) -> bool:
    try:
        digest = sha256(found.store / name)
    except OSError:
        found.add(name, f"the file is missing, {INDEX} lists it{holding}")
        return False
    if digest != listed:
        found.add(name, f"sha256 is {digest}, {INDEX} says {listed}: the file has changed")
    return digest == listed


def _read(
    found: Verification, shard: PackedShard, dim: int, known: dict[str, CaptionedImage] | None, seen: dict[str, str]
) -> bool:
    """Add the findings of one shard's samples; note their ids in `seen`. False where not all of it could be read."""
    number = captions = 0
    try:
        with open(found.store / shard.file, "rb") as file:
            for sample in read_samples(file, shard.file):
                for what in _sample(sample, shard, dim, known, seen):
                    found.add(shard.file, what, number, sample.id)
                seen[sample.id] = shard.file
                number += 1
                captions += len(sample.facts["captions"])
                found.regions += len(sample.regions)
    except Exception as error:  # a file that is no shard leads its readers to whatever error
        found.add(shard.file, f"can't be read: {reason(error)}", number)
        return False
    found.images += number
    found.shards += 1
    if (number, captions) != (shard.count, shard.captions):
        found.add(
            shard.file,
            f"holds {number} images and {captions} captions, {INDEX} says {shard.count} and {shard.captions}",
        )
    return True


def _sample(
    sample: Sample, shard: PackedShard, dim: int, known: dict[str, CaptionedImage] | None, seen: dict[str, str]
) -> Iterator[str]:
    """The mistakes of one sample."""
    regions, facts = sample.regions, sample.facts
    if sample.id in seen:
        yield f"this image is in {seen[sample.id]} already"
    if facts["split"] != shard.split:
        yield f"its split is {facts['split']!r}, the shard's {shard.split!r}"
    if regions.features.shape[1:] != (dim,):
        yield f"features are {list(regions.features.shape)}, {INDEX} says {dim} numbers a region"
    elif not np.isfinite(regions.features).all():
        yield "features are NaN or infinite"
    (x1, y1, x2, y2), (width, height) = regions.boxes.T, regions.image_size
    if not ((x1 >= 0) & (x1 <= x2) & (x2 <= width) & (y1 >= 0) & (y1 <= y2) & (y2 <= height)).all():
        yield "boxes are not inside the picture (0 <= x1 <= x2 <= width, y likewise)"
    if known is None:
        return
    row = known.get(sample.id)
    if row is None:
        yield "the manifest has no such image"
    elif (facts["split"], tuple(facts["captions"])) != (row.split, row.captions):
        yield "its split or its captions are not the manifest's"
    elif row.width is not None and (width, height) != (row.width, row.height):
        yield f"its size is {width} x {height}, the manifest says {row.width} x {row.height}"
