"""The pack stage: region and token store become WebDataset shards, to share and to stream.

Shards are plain tar files `{dataset}-{split}-{shard:06d}.tar` (`extract.stores.webdataset`), byte-identical for
identical stores, of samples in manifest order. Beside them lie `index.json` and `sizes.json`, the contents of each
shard, and `recipe.json`. There is `classes.json` where the detector has names, and `made.jsonl` with the commit and
time of the stores. `README.md` describes it all for people, `croissant.json` for programs.
"""

import logging
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from functools import partial
from hashlib import sha256 as sha256_of
from math import isfinite
from pathlib import Path
from typing import IO, Any

from extract.cards.card import write_card
from extract.engine.build import building, installing
from extract.engine.cache import Place
from extract.engine.code import code_fingerprint
from extract.engine.finished import Staging
from extract.engine.maker import Advance, Maker, ShardJob, Workers
from extract.settings import PackSettings
from extract.stores.intact import INDEX, intact_digests
from extract.stores.made import embed_made
from extract.stores.norms import Norms
from extract.stores.recipe import write_recipe
from extract.stores.regions import RegionStore, region_stores
from extract.stores.tokens import TokenStore
from extract.stores.webdataset import FORMAT, SCHEMA, Sample, write_sample
from manifests.errors import InputError
from manifests.files import atomic, sha256, write_json
from manifests.names import require_name
from manifests.schema import SPLITS, CaptionedImage
from manifests.tables import Manifest, manifest_sha256

CODE = code_fingerprint("extract.stages.pack")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Samples:
    """A shard's name, and the rows of its samples in the region store. The other keys of a sample's JSON are read on
    demand, or travel with the part."""

    name: str
    rows: list[int]
    facts: Callable[[], list[dict[str, Any]]]

    def __len__(self) -> int:
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return Samples, (self.name, self.rows, partial(list, self.facts()))


class PackShards(Maker[Samples]):
    """Makes WebDataset shards, hashed while they are written.

    Parameters
    ----------
    regions : the region store.
    staging, key : the folder of finished shards, and all that decides them.
    """

    def __init__(self, *, regions: Path, staging: Path, key: Mapping[str, Any]):
        self.regions, self.key = RegionStore(regions), {**key, "shard_code": CODE}
        self.finished = Staging(staging, key, ".tar")

    def content(self, part: Samples) -> str:
        return part.name

    def write(
        self, path: Path, part: Samples, known: Mapping[str, Place], advance: Advance
    ) -> tuple[dict[str, Any], int]:
        norms = []
        with atomic(path, make_folder=False) as whole, open(whole, "wb") as raw:
            file = _Hashed(raw)
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as shard:
                for row, facts in zip(part.rows, part.facts(), strict=True):
                    found = self.regions.read(row)
                    write_sample(shard, Sample(found, facts))
                    norms.append(Norms.of(found.features))
                    if not isfinite(norms[-1].total):
                        raise InputError(
                            f"features of image {facts['id']!r} are NaN or infinite",
                            where=self.regions.folder,
                            fix="make the store again: `selfalign verify` says what is wrong with it",
                        )
                    advance(1)
        all_of_it = Norms.combined(norms)
        return {"sha256": file.digest.hexdigest(), "norms": astuple(all_of_it) if all_of_it.count else None}, len(part)


class _Hashed:
    """A file that is hashed while it is written from its first byte to its last."""

    def __init__(self, file: IO[bytes]):
        self._file, self.digest, self.tell = file, sha256_of(), file.tell

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


def run(
    *,
    dataset: str,
    manifest: Path,
    regions: Path,
    tokens: Path,
    settings: PackSettings,
    out: Path,
    staging: Path | None = None,
    workers: Workers | None = None,
    note: bool = True,
) -> None:
    """Write the shards of `dataset`, their index, recipe and cards to the folder `out`, whole or not at all.

    Images without region features are left out and named in the card. Finished shards wait below the folder `staging`,
    by default beside `out`. `workers` may make them. With `note` the inputs of `out` are noted beside it. Raises
    InputError where a store's files aren't those of its index, or the stores and the manifest don't belong
    together.
    """
    require_name(dataset, "the data set's name, which begins its files' names")
    inputs = intact_digests([*region_stores(regions), tokens])
    images, region_store, token_store = Manifest.open(manifest), RegionStore(regions), TokenStore(tokens)
    ids = images.ids
    if token_store.image_ids != ids:
        raise InputError(
            f"holds other images than {manifest}", where=tokens, fix="run the tokens stage of this data set again"
        )
    left_out = [id for id in ids if id not in region_store]
    if len(left_out) == len(ids):
        raise InputError(
            f"has none of the images of {manifest}", where=regions, fix="run the regions stage of this data set again"
        )
    if left_out:
        log.warning("%d of %d images have no region features and are left out", len(left_out), len(ids))
    shards: dict[str, list[int]] = {}
    for split in SPLITS:
        rows = [row for row in images.rows_in(split).tolist() if ids[row] in region_store]
        for number, first in enumerate(range(0, len(rows), settings.images_per_shard)):
            shards[f"{dataset}-{split}-{number:06d}.tar"] = rows[first : first + settings.images_per_shard]

    names = {"objects": region_store.object_names, "attributes": region_store.attribute_names}
    recipe = {
        "format": FORMAT,
        "schema": SCHEMA,
        "images_per_shard": settings.images_per_shard,
        "regions": region_store.recipe,
        "tokens": token_store.recipe,
    }
    key = {"dataset": dataset, "inputs": [manifest_sha256(manifest), *inputs], "recipe": recipe, "code": CODE}
    work = {"regions": Path(regions), "staging": staging or Path(out).parent / ".staging", "key": key}
    parts, title = _Parts(shards, images, region_store, token_store), f"pack {dataset}"
    job = ShardJob(PackShards(**work), parts, title, "images", PackShards, work, on_device=False)
    with building(out, f"shards of {out}", key if note else None, [job], title=title, workers=workers) as built:
        if built is None:
            return
        listed = [
            {
                "file": name,
                "split": SPLITS[images.splits[rows[0]]],
                "count": len(rows),
                "captions": int(images.caption_counts[rows].sum()),
                "sha256": done["sha256"],
            }
            for (name, rows), done in zip(shards.items(), built[0], strict=True)
        ]
        norms = [Norms(*done["norms"]) for done in built[0] if done["norms"]]
        index = {
            "schema": SCHEMA,
            "dataset": dataset,
            "about": region_store.index.get("about"),
            "images": len(ids) - len(left_out),
            "left_out": left_out,
            "dim": region_store.dim,
            "norms": Norms.combined(norms).as_json(),
            "shards": listed,
        }
        with installing(out, [d | {"file": name} for name, d in zip(shards, built[0], strict=True)]) as folder:
            write_json(folder / "sizes.json", {name: len(rows) for name, rows in shards.items()})
            if any(names.values()):
                write_json(folder / "classes.json", names)
            index["files"] = {path.name: sha256(path) for path in sorted(folder.glob("*.json"))}
            write_json(folder / INDEX, index)
            write_recipe(folder, recipe)
            embed_made([regions, tokens], folder)
            write_card(folder)


class _Parts:
    """The samples of each shard, read when they are asked for."""

    def __init__(self, shards: dict[str, list[int]], images: Manifest, regions: RegionStore, tokens: TokenStore):
        self._shards, self._images, self._regions, self._tokens = list(shards.items()), images, regions, tokens
        self._ids = images.ids

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> Samples:
        name, rows = self._shards[number]
        return Samples(name, [self._regions.row(self._ids[row]) for row in rows], partial(self._facts, rows))

    def _facts(self, rows: list[int]) -> list[dict[str, Any]]:
        listed = [self._images.captioned[row] for row in rows]
        return [_facts(image, _words(self._tokens, row, image)) for row, image in zip(rows, listed, strict=True)]


def _facts(image: CaptionedImage, words: list[list[str]]) -> dict[str, Any]:
    """The JSON member's facts, without the sizes and labels of the regions."""
    return {"id": image.id, "split": image.split, "captions": list(image.captions), "tokens": words}


def _words(store: TokenStore, row: int, image: CaptionedImage) -> list[list[str]]:
    """The words of each caption of an image, which must be the manifest's captions."""
    captions = store.captions_of(row)
    if tuple(store.text(caption) for caption in captions) != image.captions:
        raise InputError(
            f"its captions of image {image.id!r} are not the manifest's",
            where=store.path,
            fix="run the tokens stage of this data set again",
        )
    return [store.word_texts(caption) for caption in captions]
