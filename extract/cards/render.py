"""The cards of stores: the facts that a person who receives the folder needs, in Markdown, from files of `templates/`.

Those of regions and packs are made of ``index.json`` and ``recipe.json`` alone, so that `selfalign card` can tell
whether they still hold.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from extract.stores.fields import LABELS
from manifests.schema import SPLITS

_TEMPLATES = Path(__file__).parent / "templates"
_SHOWN_NAMES = 40


def render(template: str, **values: Any) -> str:
    """The text that a file of `templates/` makes of `values`."""
    how = {"undefined": StrictUndefined, "trim_blocks": True, "keep_trailing_newline": True}
    environment = Environment(loader=FileSystemLoader(_TEMPLATES), autoescape=False, **how)
    environment.filters["thousands"] = "{:,}".format
    return environment.get_template(template).render(values)


def region_card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str, failed: int) -> str:
    """The text of a region store's `README.md`, made of its index and its recipe."""
    ragged = index["layout"] == "ragged"
    return render(
        "regions.md.jinja",
        dataset=dataset,
        split=index.get("split"),
        ragged=ragged,
        imported="imported" in recipe,
        images=index["images"],
        regions=_regions(recipe, ragged),
        dim=index["dim"],
        failed=failed,
        origin=_origin(recipe),
        precision=_precision(recipe),
        norms=_norms(index),
        boxes=_boxes(recipe),
        recipe_hash=recipe_hash,
        shards=len(index["shards"]),
        about=_about(index, recipe),
        labels=_ids("objects", index["object_names"]) + _ids("attributes", index["attribute_names"]),
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
    return render(
        "pack.md.jinja",
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


def text_card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str) -> str:
    """The text of a text feature store's `README.md`."""
    encoder = recipe["encoder"]
    return render(
        "text_features.md.jinja",
        dataset=dataset,
        captions=index["captions"],
        pieces=index["pieces"],
        dim=index["dim"],
        encoder=encoder["name"],
        layer=recipe["layer"],
        weights=_weights(encoder),
        tokenizer=recipe["tokenizer"]["class"],
        size=recipe["tokenizer"]["size"],
        recipe_hash=recipe_hash,
        shards=len(index["shards"]),
    )


def teacher_card(dataset: str, index: dict[str, Any], recipe: dict[str, Any], recipe_hash: str, failed: int) -> str:
    """The text of a teacher store's `README.md`."""
    return render(
        "teachers.md.jinja",
        dataset=dataset,
        images=index["images"],
        captions=index["captions"],
        image_teacher=recipe["images"]["name"],
        caption_teacher=recipe["captions"]["name"],
        image_weights=_weights(recipe["images"]),
        caption_weights=_weights(recipe["captions"]),
        image_dim=index["dims"]["images"],
        caption_dim=index["dims"]["captions"],
        failed=failed,
        recipe_hash=recipe_hash,
    )


def _weights(recipe: Mapping[str, Any]) -> str:
    files = (f"{name} sha256 `{digest}`" for name, digest in recipe.get("weights_sha256", {}).items())
    return ", ".join(files) or "none: built in"


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
    digests = ", ".join(f"`{digest}`" for digest in (weights.values() if isinstance(weights, Mapping) else [weights]))
    row = f"| detector | `{detector.get('name')}`{named}, weights sha256 {digests} |"
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
        known = recipe["imported"]["boxes"]
        return "absolute (x1, y1, x2, y2) in pixels" if known else "unknown: all of a picture of one pixel"
    return "absolute (x1, y1, x2, y2) in pixels of the upright original picture"


def _norms(index: Mapping[str, Any]) -> str:
    norms = index.get("norms")
    return "from {least:.2f} to {most:.2f}, mean {mean:.2f}".format(**norms) if norms else "not measured"


def _about(index: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The rows that people wrote: the pictures' licence, which governs their features too, and the citation."""
    about, made = index.get("about") or {}, "whoever made the files" if "imported" in recipe else "the detector"
    licence = about.get("licence") or "not told: ask whoever gave you the pictures"
    cite = about.get("cite") or f"the pictures' source, {made} and the recipe above"
    return f"| licence of the pictures | {licence} (it governs these features too) |\n| cite | {cite} |"


def _left_out(ids: Sequence[str]) -> str:
    shown = ", ".join(f"`{id}`" for id in ids[:20]) + (", ..." if len(ids) > 20 else "")
    return f"{len(ids)} ({shown})" if ids else "none"


def _ids(what: str, names: list[str] | None) -> str:
    """The names of the first ids, as a paragraph; empty without names of the detector."""
    if not names:
        return ""
    shown = ", ".join(f"{number} {name}" for number, name in enumerate(names[:_SHOWN_NAMES]))
    return f"{what} ids: {shown}{' …' if len(names) > _SHOWN_NAMES else ''}\n\n"
