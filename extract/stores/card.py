"""The card of a region store: what a person who receives the folder must know, in Markdown."""

from typing import Any

_SHOWN_NAMES = 40
_CARD = """# Region features: {dataset}

{images:,} pictures, {regions} regions each, {dim} numbers a region ({layout}); {failed} pictures could not be read
(`failures.jsonl`).

| what | |
|---|---|
{origin}
| boxes | {boxes} |
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
    ragged = index["layout"] == "ragged"
    regions, origin, boxes = _imported(recipe, ragged) if "imported" in recipe else _extracted(recipe, ragged)
    return _CARD.format(
        dataset=dataset,
        images=index["images"],
        regions=regions,
        origin=origin,
        boxes=boxes,
        dim=index["dim"],
        layout=index["layout"],
        failed=failed,
        recipe_hash=recipe_hash,
        shards=len(index["shards"]),
        labels=_ids("objects", index["object_names"]) + _ids("attributes", index["attribute_names"]),
        example='(shard[name][slice(*shard["offsets"][0:2])] for name in ("features", "boxes"))'
        if ragged
        else 'shard["features"][0], shard["boxes"][0]',
    )


def _extracted(recipe: dict[str, Any], ragged: bool) -> tuple[str, str, str]:
    """How many regions, where they come from (rows of the table), what the boxes are."""
    selection, detector = recipe["selection"], recipe["detector"]
    rows = (
        f"| detector | `{detector['name']}`, weights sha256 `{detector['weights_sha256']}` |\n"
        f"| selection | {', '.join(f'{key} {value}' for key, value in selection.items())} |\n"
        "| features | float16, of the proposals |"
    )
    regions = f"{selection.get('min_boxes', 0)} to {selection['max_boxes']}" if ragged else str(selection["max_boxes"])
    return regions, rows, "absolute (x1, y1, x2, y2) in pixels of the upright original picture"


def _imported(recipe: dict[str, Any], ragged: bool) -> tuple[str, str, str]:
    imported = recipe["imported"]
    rows = (
        f"| imported | from {imported['format']}: {', '.join(imported['files'])} (`recipe.json` has their sha256) |\n"
        f"| features | {recipe['format']['features']}, whatever made the files |"
    )
    boxes = "absolute (x1, y1, x2, y2) in pixels" if imported["boxes"] else "unknown: all of a picture of one pixel"
    return "any number of" if ragged else "the same number of", rows, boxes


def _ids(what: str, names: list[str] | None) -> str:
    """What the first ids mean, a paragraph; nothing where the detector knows no names."""
    if not names:
        return ""
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN_NAMES]))
    return f"{what} ids: {shown}{' …' if len(names) > _SHOWN_NAMES else ''}\n\n"
