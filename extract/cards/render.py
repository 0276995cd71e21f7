"""The cards of a region store and of its WebDataset shards: what a person who receives the folder must know.

Markdown, made of ``index.json`` and ``recipe.json`` alone, so that `selfalign card` can tell whether it still holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from extract.stores.fields import LABELS
from manifests.schema import SPLITS

_SHOWN_NAMES = 40
_REGIONS = """# Region features: {dataset}{split}

{images:,} pictures, {regions} regions each, {dim} numbers a region ({layout}){failed}.

| what | |
|---|---|
{origin}
| features | {precision}; norms {norms} |
| boxes | {boxes} |
| image_size | (width, height) |
| recipe | `{recipe_hash}` (`recipe.json` has it whole) |
| shards | {shards}, rows in manifest order (`index.json` has counts and sha256) |
{about}

{labels}Load it with h5py alone, into NumPy:

```python
import h5py
shard = h5py.File("000000.h5", locking=False)
features, boxes = {numpy}
image_id = shard["image_id"][0].decode()
```

into PyTorch:

```python
{torch}
```

as WebDataset shards, which `dvc repro pack@{dataset}` makes beside it{if_stage}:

```python
import webdataset
for sample in webdataset.WebDataset("{pack}-000000.tar", shardshuffle=False).decode():
    print(sample["json"]["id"], sample["features.npy"].shape, sample["boxes.npy"].shape)
```

or with SelfAlign, through memory maps: `extract.stores.regions.RegionStore("{folder}").regions(0)`. Check that
it is whole: `selfalign verify`.
"""
_DENSE_TORCH = """\
import h5py, torch
shard = h5py.File("000000.h5", locking=False)
data = torch.utils.data.TensorDataset(*(torch.from_numpy(shard[name][:]) for name in ("features", "boxes")))
for features, boxes in torch.utils.data.DataLoader(data, batch_size=128, shuffle=True):
    print(features.shape, boxes.shape)"""
_RAGGED_TORCH = """\
import h5py, torch
shard = h5py.File("000000.h5", locking=False)
start, end = shard["offsets"][0:2]
features, boxes = (torch.from_numpy(shard[name][start:end]) for name in ("features", "boxes"))
print(features.shape, boxes.shape)"""
_PACK = """# {dataset}: region features and captions as WebDataset shards

{images:,} images in {count} shards, made by SelfAlign. `index.json` says what each shard holds and its sha256
(`sizes.json`: only how many images), `recipe.json` how features and words were made, `classes.json` (if the detector
has them) what the object and attribute ids mean; `croissant.json` describes it all to programs.

| shards | images | captions |
|---|---|---|
{splits}

| what | |
|---|---|
{origin}
| norms | {norms} |
| recipe | `{recipe_hash}` |
{about}

Read them with the `webdataset` package alone, from this folder or with the address of a server before the file name:

```python
import webdataset
for sample in webdataset.WebDataset("{url}", shardshuffle=False).decode():
    print(sample["json"]["id"], sample["features.npy"].shape, sample["boxes.npy"].shape, sample["json"]["captions"])
```

as batches for PyTorch:

```python
import torch, webdataset
data = webdataset.WebDataset("{url}", shardshuffle=100).shuffle(1000).decode()
for features, facts in torch.utils.data.DataLoader(data.to_tuple("features.npy", "json"), batch_size=None):
    print(features.shape, facts["captions"])
```

or with NumPy alone:

```python
import io, tarfile, numpy
shard = tarfile.open("{first}")
name = next(name for name in shard.getnames() if name.endswith(".features.npy"))
print(numpy.load(io.BytesIO(shard.extractfile(name).read())).shape)
```

- `features.npy`: {precision} `[R, {dim}]`, one row a region. `boxes.npy`: float32 `[R, 4]`,
  {boxes}.
- `json`: `id`, `split`, `width`, `height`, `captions`, `tokens` (the lower-cased words of each caption, without
  punctuation), `num_boxes` (R) and, if the detector has them, {labels}.
- A key is the image id with `%`, `.`, `/` and `\\` written as in a URL; `json`'s `id` is the id itself.
- Images left out, since they have no region features: {left_out}.
"""


def region_card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str, failed: int) -> str:
    """The text of a region store's `README.md`, made of its index and its recipe."""
    ragged, imported, split = index["layout"] == "ragged", "imported" in recipe, index.get("split")
    return _REGIONS.format(
        dataset=dataset,
        split=f", split {split}" if split else "",
        pack=f"../../pack/{dataset}-{split}" if split else f"../pack/{dataset}-train",
        folder=f"{dataset}/regions/{split}" if split else f"{dataset}/regions",
        images=index["images"],
        regions=_regions(recipe, ragged),
        dim=index["dim"],
        layout=index["layout"],
        failed="" if imported else f"; {failed} pictures could not be read\n(`failures.jsonl`)",
        if_stage=", where it is a data set of `params.yaml`" if imported else "",
        origin=_origin(recipe),
        precision=_precision(recipe),
        norms=_norms(index),
        boxes=_boxes(recipe),
        recipe_hash=recipe_hash,
        shards=len(index["shards"]),
        about=_about(index, recipe),
        labels=_ids("objects", index["object_names"]) + _ids("attributes", index["attribute_names"]),
        numpy='(shard[name][slice(*shard["offsets"][0:2])] for name in ("features", "boxes"))'
        if ragged
        else 'shard["features"][0], shard["boxes"][0]',
        torch=_RAGGED_TORCH if ragged else _DENSE_TORCH,
    )


def pack_card(index: Mapping[str, Any], recipe: Mapping[str, Any], recipe_hash: str) -> str:
    """The text of the `README.md` beside WebDataset shards, made of their index and recipe."""
    dataset, lines, patterns = index["dataset"], [], []
    for split in SPLITS:
        shards = [shard for shard in index["shards"] if shard["split"] == split]
        if shards:
            numbers = "000000" if len(shards) == 1 else f"{{000000..{len(shards) - 1:06d}}}"
            patterns.append(f"{dataset}-{split}-{numbers}.tar")
            counts = (sum(shard[what] for shard in shards) for what in ("count", "captions"))
            lines.append(f"| `{patterns[-1]}` | {' | '.join(map(str, counts))} |")
    return _PACK.format(
        labels=", ".join(f"`{name}`" for name in LABELS),
        dataset=dataset,
        images=index["images"],
        count=len(index["shards"]),
        splits="\n".join(lines),
        origin=_origin(recipe["regions"]),
        precision=_precision(recipe["regions"]),
        boxes=_boxes(recipe["regions"]),
        norms=_norms(index),
        recipe_hash=recipe_hash,
        about=_about(index, recipe["regions"]),
        url=patterns[0],
        first=index["shards"][0]["file"],
        dim=index["dim"],
        left_out=_left_out(index["left_out"]),
    )


def _regions(recipe: Mapping[str, Any], ragged: bool) -> str:
    if "imported" in recipe:
        return "any number of" if ragged else "the same number of"
    if "selection" not in recipe:
        regions = (recipe.get("detector") or {}).get("regions")
        return "any number of" if ragged else str(regions or "the same number of")
    selection = recipe["selection"]
    fewest, most = selection.get("min_boxes", 0), selection.get("max_boxes", "any number of")
    return str(most) if fewest == most else f"{fewest} to {most}"


def _origin(recipe: Mapping[str, Any]) -> str:
    """The rows of a table that say which network and which rule made the regions, or which files they come from."""
    if "imported" in recipe:
        imported = recipe["imported"]
        return f"| imported | from {imported['format']}: {', '.join(imported['files'])} (`recipe.json`: their sha256) |"
    detector, selection = recipe.get("detector"), recipe.get("selection")
    if not isinstance(detector, Mapping):
        return "| origin | not told |"
    model = detector.get("model")  # of a grid, whose name and weights are the model's
    named = f" of `{model.get('name')}`" if isinstance(model, Mapping) else ""
    weights = (model if isinstance(model, Mapping) else detector).get("weights_sha256", "unknown")
    told = ", ".join(f"`{digest}`" for digest in (weights.values() if isinstance(weights, Mapping) else [weights]))
    row = f"| detector | `{detector.get('name')}`{named}, weights sha256 {told} |"
    if isinstance(selection, Mapping):
        rule = ", ".join(f"{key} {selection[key]}" for key in sorted(selection, key=lambda key: (key != "rule", key)))
        return f"{row}\n| selection | {rule} |"
    boxes = "boxes that were given with the pictures" if recipe.get("boxes") else detector.get("boxes", "pyramid")
    return f"{row}\n| regions of | {boxes} |"


def _precision(recipe: Mapping[str, Any]) -> str:
    kept = recipe.get("format")
    return str(kept["features"]) if isinstance(kept, Mapping) else "float16"


def _boxes(recipe: Mapping[str, Any]) -> str:
    if "imported" in recipe:
        told = recipe["imported"]["boxes"]
        return "absolute (x1, y1, x2, y2) in pixels" if told else "unknown: all of a picture of one pixel"
    return "absolute (x1, y1, x2, y2) in pixels of the upright original picture"


def _norms(index: Mapping[str, Any]) -> str:
    norms = index.get("norms")
    return "from {least:.2f} to {most:.2f}, mean {mean:.2f}".format(**norms) if norms else "not measured"


def _about(index: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The rows that people wrote: the pictures' licence, which governs their features too, and what to cite."""
    about, made = index.get("about") or {}, "whoever made the files" if "imported" in recipe else "the detector"
    licence = about.get("licence") or "not told: ask whoever gave you the pictures"
    cite = about.get("cite") or f"the pictures' source, {made} and the recipe above"
    return f"| licence of the pictures | {licence} (it governs these features too) |\n| cite | {cite} |"


def _left_out(ids: Sequence[str]) -> str:
    shown = ", ".join(f"`{id}`" for id in ids[:20]) + (", ..." if len(ids) > 20 else "")
    return f"{len(ids)} ({shown})" if ids else "none"


def _ids(what: str, names: list[str] | None) -> str:
    """What the first ids mean, a paragraph; nothing where the detector knows no names."""
    if not names:
        return ""
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN_NAMES]))
    return f"{what} ids: {shown}{' …' if len(names) > _SHOWN_NAMES else ''}\n\n"
