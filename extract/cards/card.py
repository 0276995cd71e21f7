"""Descriptions of a store for its receiver: ``README.md`` for people, ``croissant.json`` for programs.

The stages write both with `write_card`. `selfalign card` prints the card and names the facts that no longer hold. It
also puts a licence or a citation into the card of a finished store. Tokens, text features and teachers have a card of
their stage's own, and no ``croissant.json``: it is printed as it stands.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from extract.cards.croissant import FILE as CROISSANT
from extract.cards.croissant import croissant
from extract.cards.render import pack_card, region_card
from extract.stores.intact import INDEX, Index, listed_files, read_index
from extract.stores.norms import Norms
from extract.stores.recipe import FILE as RECIPE
from extract.stores.recipe import read_recipe
from extract.stores.regions import FAILURES, RegionIndex, RegionStore, require_region_recipe
from extract.stores.webdataset import FORMAT, PackIndex, read_samples, require_pack_recipe
from manifests.errors import InputError
from manifests.files import sha256, write_json, write_text
from manifests.jsonl import read_rows
from manifests.progress import progress

CARD = "README.md"
_FIX = "choose the folder of a store, for instance `data/D/regions` or `data/D/pack`"


@dataclass(frozen=True, slots=True)
class Card:
    """A store's card, made of its index, recipe and shards, and the store's contradictions of it."""

    text: str
    croissant: dict[str, Any]
    findings: list[str]


def run(store: Path, *, licence: str | None = None, cite: str | None = None) -> Card:
    """The card of a store, with everything in it counted and measured again.

    Parameters
    ----------
    store : a region store, the folder of its WebDataset shards, or another store that has a card.
    licence, cite : of the pictures; written into the index and the card where given, after everything else was found
        to hold. Region stores and shards alone have them.

    Raises `InputError` where the folder is none, or where nothing can be written since the store is damaged.
    """
    store = Path(store)
    _index(store, Index)
    recipe, recipe_hash = read_recipe(store)
    if _has_its_own_card(recipe):
        if licence or cite:
            raise InputError(
                "the card of this store has no licence and no citation",
                where=store,
                fix="write them into the cards of `data/D/regions` and `data/D/pack`",
            )
        return _as_it_stands(store)
    index = _index_of(store, recipe)
    findings = _damage(store, index, recipe)
    given = {key: value for key, value in (("licence", licence), ("cite", cite)) if value}
    if given and findings:
        more = f", and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise InputError(
            f"nothing was written, since the store doesn't hold what its card says: {findings[0]}{more}",
            where=store,
            fix="restore it first; `selfalign verify` says what is wrong",
        )
    if given:
        index["about"] = (index.get("about") or {}) | given
        write_json(store / INDEX, index)
        write_card(store)
    text, metadata = _described(store, index, recipe, recipe_hash)
    findings += [
        f"{name} isn't what {INDEX} and recipe.json say: it was edited, or they were"
        for name, differs in ((CARD, _differs(store / CARD, text)), (CROISSANT, _differs(store / CROISSANT, metadata)))
        if differs
    ]
    return Card(text, metadata, findings)


def takes_licence(store: Path) -> bool:
    """Whether the card of a store has a licence and a citation: those of regions and of WebDataset shards do."""
    return not _has_its_own_card(read_recipe(store)[0])


def write_card(folder: Path) -> None:
    """Write ``README.md`` and ``croissant.json`` beside an index and a recipe that are finished."""
    recipe, recipe_hash = read_recipe(folder)
    text, metadata = _described(folder, _index_of(folder, recipe), recipe, recipe_hash)
    write_text(folder / CARD, text)
    write_json(folder / CROISSANT, metadata)


def _as_it_stands(store: Path) -> Card:
    """The card that a stage wrote beside files which are all there and unchanged, or else findings."""
    changed = (_changed(store / name, listed) for name, listed in listed_files(store).items())
    findings = [finding for finding in changed if finding]
    try:
        return Card((store / CARD).read_text(encoding="utf-8"), {}, findings)
    except (OSError, ValueError) as error:
        return Card("", {}, [*findings, f"{CARD}: can't be read ({error})"])


def _described(
    folder: Path, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str
) -> tuple[str, dict[str, Any]]:
    dataset = index.get("dataset") or folder.absolute().parent.name
    if _is_pack(recipe):
        text = pack_card(index, recipe, recipe_hash)
    else:
        failed = sum(1 for _ in read_rows(folder / FAILURES, fix="make the store again"))
        text = region_card(dataset, index, recipe, recipe_hash, failed)
    return text, croissant(folder, dataset, index, recipe_hash)


def _has_its_own_card(recipe: dict[str, Any]) -> bool:
    """Whether a recipe is that of tokens, text features or teachers: these name their format, region stores don't."""
    return isinstance(recipe.get("format"), str) and not _is_pack(recipe)


def _is_pack(recipe: dict[str, Any]) -> bool:
    return recipe.get("format") == FORMAT


def _index_of(store: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The index of a region store or of packed shards, by the recipe's kind."""
    of_pack = _is_pack(recipe)
    (require_pack_recipe if of_pack else require_region_recipe)(recipe, store / RECIPE)
    return _index(store, PackIndex if of_pack else RegionIndex)


def _index(store: Path, kind: type[Index]) -> dict[str, Any]:
    try:
        return read_index(store, kind, _FIX)
    except InputError as error:
        raise InputError(f"no store that has a card ({error.what})", where=error.where, fix=error.fix) from error


def _differs(path: Path, expected: str | dict[str, Any]) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
        return (text if isinstance(expected, str) else json.loads(text)) != expected
    except (OSError, ValueError, RecursionError):
        return True


def _damage(store: Path, index: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """The files that are missing or have changed; if none, the counts that differ between index and shards."""
    if (counted := sum(shard["count"] for shard in index["shards"])) != index["images"]:
        return [f"{INDEX} says {index['images']} images, the shards hold {counted}"]
    findings, found = [], []
    shards = {shard["file"]: number for number, shard in enumerate(index["shards"])}
    of = _pack_shard if _is_pack(recipe) else partial(_region_shard, RegionStore(store))
    for name, listed in progress(listed_files(store).items(), what="card", unit="files"):
        if finding := _changed(store / name, listed):
            findings.append(finding)
        elif not findings and name in shards:
            found.append(of(store / name, shards[name]))
    if findings:
        return findings
    images, norms = sum(count for count, _ in found), Norms.combined(norms for _, norms in found).as_json()
    if images != index["images"]:
        findings.append(f"{INDEX} says {index['images']} images, the shards hold {images}")
    if "norms" in index and norms != index["norms"]:
        findings.append(f"{INDEX} says norms {index['norms']}, those of the features are {norms}")
    return findings


def _changed(path: Path, listed: str) -> str | None:
    """The damage of a file that the index lists with its sha256; None if there is none."""
    digest = sha256(path) if path.is_file() else None
    if digest == listed:
        return None
    return f"{path.name}: the file {'has changed' if digest else 'is missing'}, {INDEX} lists it"


def _region_shard(store: RegionStore, path: Path, number: int) -> tuple[int, Norms]:
    """The number of images and the norms of a shard."""
    shard = store.shard(number)
    return len(shard["image_id"]), Norms.of(shard["features"])


def _pack_shard(path: Path, number: int) -> tuple[int, Norms]:
    """As `_region_shard`."""
    with open(path, "rb") as file:
        features = [sample.regions.features for sample in read_samples(file, path)]
    return len(features), Norms.combined(map(Norms.of, features))
