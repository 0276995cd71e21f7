"""The region stores of a data set, one a split, as both `regions` stages install them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from extract.cards.card import write_card
from extract.engine.build import filled
from extract.settings import About
from extract.stores.intact import INDEX
from extract.stores.norms import Norms
from extract.stores.recipe import write_recipe
from extract.stores.regions import FAILURES, region_index
from manifests.files import canonical_json, whole_folder, write_json, write_text
from manifests.schema import SPLITS
from manifests.tables import Manifest, Shard


def install_region_stores(
    out: Path,
    listed: Manifest,
    places: Sequence[Shard],
    done: Sequence[Mapping[str, Any]],
    recipe: dict[str, Any],
    *,
    dataset: str,
    about: About | None,
    dim: int,
    dense: int | None,
    object_names: list[str] | None,
    attribute_names: list[str] | None,
) -> None:
    """Install `out`/train, `out`/val and `out`/test at once: shards, index, failures, recipe and cards.

    Parameters
    ----------
    places, done : of each shard its split and name, and its marker.
    about : the pictures' licence and the works to cite, for the card.
    dim, dense, object_names, attribute_names : as `region_index` takes them.

    A split without pictures is a store without shards: DVC wants every out to be there.
    """
    failed = {failure["id"] for shard in done for failure in shard.get("failures", ())}
    paths = {row.id: row.path for row in listed.images if row.id in failed} if failed else {}  # today's
    with whole_folder(out) as ready:
        for split in SPLITS:
            pairs = zip(places, done, strict=True)
            own = [shard | {"file": place.file} for place, shard in pairs if place.split == split]
            failures = [failure for shard in own for failure in shard.get("failures", ())]
            norms = [Norms(*shard["norms"]) for shard in own if shard["norms"]]
            index = region_index(
                own, dim=dim, dense=dense, object_names=object_names, attribute_names=attribute_names
            ) | {
                "dataset": dataset,
                "split": split,
                "about": (about or About()).model_dump(exclude_none=True),
                "norms": Norms.combined(norms).as_json(),
            }
            with filled(ready / split, own) as folder:
                write_json(folder / INDEX, index)
                lines = (canonical_json(failure | {"path": paths[failure["id"]]}) + "\n" for failure in failures)
                write_text(folder / FAILURES, "".join(lines))
                write_recipe(folder, recipe)
                write_card(folder)
