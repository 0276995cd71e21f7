"""What describes a store to whoever receives it: ``README.md`` for people, ``croissant.json`` for programs.

The stages write both with `write_card`; `selfalign card` prints the card, says what in it no longer holds, and puts a
licence or a citation into the card of a store that is finished. Tokens, text features and teachers have a card of their
stage's own, and no ``croissant.json``: it is printed as it stands.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extract.stores.card import pack_card, region_card
from extract.stores.croissant import FILE as CROISSANT
from extract.stores.croissant import croissant
from extract.stores.hdf5 import MappedHDF5
from extract.stores.intact import INDEX, listed_files
from extract.stores.norms import Norms
from extract.stores.recipe import read_recipe
from extract.stores.regions import FAILURES
from extract.stores.webdataset import FORMAT, read_samples
from manifests.errors import InputError
from manifests.files import sha256, write_json, write_text
from manifests.jsonl import read_rows
from manifests.progress import progress

CARD = "README.md"
_FIX = "choose the folder of a store, for instance `data/D/regions` or `data/D/pack`"


@dataclass(frozen=True, slots=True)
class Card:
    """A store's card as its index, recipe and shards give it, and what in the store doesn't agree with it."""

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
    _index(store, "shards")
    recipe, recipe_hash = read_recipe(store)
    if _has_its_own_card(recipe):
        if licence or cite:
            raise InputError(
                "the card of this store has no licence and no citation",
                where=store,
                fix="write them into the cards of `data/D/regions` and `data/D/pack`",
            )
        return _as_it_stands(store)
    index = _index(store)
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


def write_card(folder: Path) -> None:
    """Write ``README.md`` and ``croissant.json`` beside an index and a recipe that are finished."""
    text, metadata = _described(folder, _index(folder), *read_recipe(folder))
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


def _index(store: Path, *keys: str) -> dict[str, Any]:
    path = store / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        for key in keys or ("dim", "images", "shards"):
            index[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"no store that has a card ({error!r})", where=path, fix=_FIX) from error
    return index


def _differs(path: Path, expected: str | dict[str, Any]) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
        return (text if isinstance(expected, str) else json.loads(text)) != expected
    except (OSError, ValueError):
        return True


def _damage(store: Path, index: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """Which files are missing or have changed; if none, what the index counts otherwise than the shards do."""
    findings, found, of = [], [], _pack_shard if _is_pack(recipe) else _region_shard
    shards = {shard["file"] for shard in index["shards"]}
    for name, listed in progress(listed_files(store).items(), what="card", unit="files"):
        if finding := _changed(store / name, listed):
            findings.append(finding)
        elif not findings and name in shards:
            found.append(of(store / name))
    if findings:
        return findings
    images, norms = sum(count for count, _ in found), Norms.together(norms for _, norms in found).as_json()
    if images != index["images"]:
        findings.append(f"{INDEX} says {index['images']} images, the shards hold {images}")
    if "norms" in index and norms != index["norms"]:
        findings.append(f"{INDEX} says norms {index['norms']}, those of the features are {norms}")
    return findings


def _changed(path: Path, listed: str) -> str | None:
    """What is wrong with a file whose sha256 the index lists, if anything is."""
    digest = sha256(path) if path.is_file() else None
    if digest == listed:
        return None
    return f"{path.name}: the file {'has changed' if digest else 'is missing'}, {INDEX} lists it"


def _region_shard(path: Path) -> tuple[int, Norms]:
    """The number of images and the norms of a shard."""
    shard = MappedHDF5(path)
    return len(shard["image_id"]), Norms.of(shard["features"])


def _pack_shard(path: Path) -> tuple[int, Norms]:
    """As `_region_shard`."""
    with open(path, "rb") as file:
        features = [sample.regions.features for sample in read_samples(file, path)]
    return len(features), Norms.together(map(Norms.of, features))
