"""The pack stage: region and token store become WebDataset shards, to share and to stream.

Shards are plain tar files `{dataset}-{split}-{shard:06d}.tar` (`extract.stores.webdataset`), byte-identical for
identical stores, of samples in manifest order. Beside them: `index.json` and `sizes.json` (what each shard holds),
`recipe.json`, `classes.json` where the detector has names, and two descriptions of it all, `README.md` for people and
`croissant.json` for programs.
"""

import logging
import tarfile
from math import isfinite
from pathlib import Path
from typing import Any

from extract.cards.card import write_card
from extract.settings import PackSettings
from extract.stores.intact import INDEX, require_intact
from extract.stores.norms import Norms
from extract.stores.recipe import write_recipe
from extract.stores.regions import RegionStore, region_stores
from extract.stores.tokens import TokenStore
from extract.stores.webdataset import FORMAT, SCHEMA, Sample, write_sample
from manifests.errors import InputError
from manifests.files import atomic, sha256, whole_folder, write_json
from manifests.locks import one_writer
from manifests.names import require_name
from manifests.progress import progress
from manifests.schema import SPLITS, CaptionedImage
from manifests.tables import Manifest, manifest_sha256

log = logging.getLogger(__name__)


def _decides(
    *, dataset: str, manifest: Path, regions: Path, tokens: Path, settings: PackSettings, out: Path
) -> dict[str, Any]:
    """What decides the shards, as JSON."""
    stores = [*region_stores(regions), tokens]
    files = [sha256(store / INDEX) for store in stores if (store / INDEX).is_file()]
    return {"dataset": dataset, "files": [manifest_sha256(manifest), *files]} | settings.model_dump()


@one_writer("shards", _decides)
def run(*, dataset: str, manifest: Path, regions: Path, tokens: Path, settings: PackSettings, out: Path) -> None:
    """Write the shards of `dataset`, as `write` does, as the only process that does so."""
    write(dataset=dataset, manifest=manifest, regions=regions, tokens=tokens, settings=settings, out=out)


def write(*, dataset: str, manifest: Path, regions: Path, tokens: Path, settings: PackSettings, out: Path) -> None:
    """Write the shards of `dataset`, their index, recipe and cards to the folder `out`, whole or not at all.

    Images without region features are left out and named in the card. Raises InputError where a store's files aren't
    those of its index, or the stores and the manifest don't belong together.
    """
    require_name(dataset, "the data set's name, which begins its files' names")
    for store in (*region_stores(regions), tokens):
        require_intact(store)
    images, region_store, token_store = Manifest.open(manifest), RegionStore(regions), TokenStore(tokens)
    ids = images.ids
    if token_store.image_ids != ids:
        raise InputError(
            f"holds other images than {manifest}", where=tokens, fix="run the tokens stage of this data set again"
        )
    extracted = set(region_store.ids)
    left_out = [id for id in ids if id not in extracted]
    if len(left_out) == len(ids):
        raise InputError(
            f"has none of the images of {manifest}", where=regions, fix="run the regions stage of this data set again"
        )
    if left_out:
        log.warning("%d of %d images have no region features and are left out", len(left_out), len(ids))
    shards: dict[str, list[int]] = {}
    for split in SPLITS:
        rows = [row for row in images.rows_in(split).tolist() if ids[row] in extracted]
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
    norms: list[Norms] = []
    with whole_folder(out) as folder:
        with progress(what="pack", unit="images", total=len(ids) - len(left_out)) as bar:
            for name, rows in shards.items():
                with atomic(folder / name) as file, tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as shard:
                    for row in rows:
                        image = images.captioned[row]
                        found = region_store.read(region_store.row(image.id))
                        write_sample(shard, Sample(found, _facts(image, _words(token_store, row, image))))
                        norms.append(Norms.of(found.features))
                        if not isfinite(norms[-1].total):
                            raise InputError(
                                f"features of image {image.id!r} are NaN or infinite",
                                where=regions,
                                fix="make the store again: `selfalign verify` says what is wrong with it",
                            )
                        bar.update()
        listed = [
            {
                "file": name,
                "split": SPLITS[images.splits[rows[0]]],
                "count": len(rows),
                "captions": int(images.caption_counts[rows].sum()),
                "sha256": sha256(folder / name),
            }
            for name, rows in shards.items()
        ]
        index = {
            "schema": SCHEMA,
            "dataset": dataset,
            "about": region_store.index.get("about"),
            "images": len(ids) - len(left_out),
            "left_out": left_out,
            "dim": region_store.dim,
            "norms": Norms.together(norms).as_json(),
            "shards": listed,
        }
        write_json(folder / "sizes.json", {name: len(rows) for name, rows in shards.items()})
        if any(names.values()):
            write_json(folder / "classes.json", names)
        index["files"] = {path.name: sha256(path) for path in sorted(folder.glob("*.json"))}
        write_json(folder / INDEX, index)
        write_recipe(folder, recipe)
        write_card(folder)


def _facts(image: CaptionedImage, words: list[list[str]]) -> dict[str, Any]:
    """What the JSON member says beside the sizes and labels of the regions."""
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
