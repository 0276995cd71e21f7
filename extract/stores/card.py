"""The card of a region store: what a person who receives the folder must know, in Markdown."""

from typing import Any

_SHOWN_NAMES = 40
_CARD = """# Region features: {dataset}

{images:,} pictures, {regions} regions each, {dim} numbers a region ({layout}); {failed} pictures could not be read
(`failures.jsonl`).

| what | |
|---|---|
| detector | `{detector}`, weights sha256 `{weights}` |
| selection | {selection} |
| features | float16, of the proposals |
| boxes | absolute (x1, y1, x2, y2) in pixels of the upright original picture |
| image_size | (width, height) |
| recipe | `{recipe_hash}` (`recipe.json` has it whole, and what made this store) |
| shards | {shards}, rows in manifest order (`index.json` has counts and sha256) |

{labels}Load it with h5py alone:

```python
import h5py
shard = h5py.File("000000.h5")
features, boxes = {example}
image_id = shard["image_id"][0].decode()
```

or with SelfAlign, through memory maps: `extract.stores.regions.RegionStore("{dataset}/regions").regions(0)`.

The licence of the pictures governs these features too: ask whoever gave you the pictures. Cite the pictures' source,
the detector, and this store's recipe hash.
"""


def region_card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str, failed: int) -> str:
    """The text of a region store's `README.md`, made of its index and its recipe."""
    selection = recipe["selection"]
    ragged = index["layout"] == "ragged"
    return _CARD.format(
        dataset=dataset,
        images=index["images"],
        regions=f"{selection.get('min_boxes', 0)} to {selection['max_boxes']}" if ragged else selection["max_boxes"],
        dim=index["dim"],
        layout=index["layout"],
        failed=failed,
        detector=recipe["detector"]["name"],
        weights=recipe["detector"]["weights_sha256"],
        selection=", ".join(f"{key} {value}" for key, value in selection.items()),
        recipe_hash=recipe_hash,
        shards=len(index["shards"]),
        labels=_ids("objects", index["object_names"]) + _ids("attributes", index["attribute_names"]),
        example='(shard[name][slice(*shard["offsets"][0:2])] for name in ("features", "boxes"))'
        if ragged
        else 'shard["features"][0], shard["boxes"][0]',
    )


def _ids(what: str, names: list[str] | None) -> str:
    """What the first ids mean, a paragraph; nothing where the detector knows no names."""
    if not names:
        return ""
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN_NAMES]))
    return f"{what} ids: {shown}{' …' if len(names) > _SHOWN_NAMES else ''}\n\n"
