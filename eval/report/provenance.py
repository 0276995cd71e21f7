"""Where a comparison's figures come from: recipes, data and their sizes, commit, settings of each run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.report.results import RunResult
from extract.stores.regions import RegionStore
from manifests.host import measured_where
from manifests.schema import SPLITS
from manifests.tables import Manifest

STORES = ("regions", "tokens", "text_features", "pack")


def provenance(
    folder: Path, image_root: Path, runs: Sequence[RunResult], left_out: Sequence[str], commit: str | None
) -> dict:
    """What the templates show of it; `folder` is the data set's, `commit` the project's if that is known."""
    store = RegionStore(folder / "regions")
    listed = Manifest.open(folder / "manifest")
    flat = [_flat(run.settings) for run in runs]
    keys = sorted({key for settings in flat for key, value in settings.items() if value is not None})
    differing = [key for key in keys if len({_shown(settings.get(key)) for settings in flat}) > 1]
    return {
        "commit": commit,
        "recipe_hash": store.recipe_hash,
        "recipe": json.dumps(store.recipe, indent=2, sort_keys=True, ensure_ascii=False),
        "detector": _detector(store.recipe),
        "dimensions": store.dim,
        "splits": [
            {
                "name": split,
                "images": len(listed.rows_in(split)),
                "captions": int(listed.caption_counts[listed.rows_in(split)].sum()),
            }
            for split in SPLITS
        ],
        "stores": [
            {"name": name, "size": _size(folder / name)} for name in STORES if any((folder / name).rglob("index.json"))
        ],
        "left_out": list(left_out),
        "records": [
            {
                "parameters": run.record["parameters"],
                "best_epoch": None if run.record["best_epoch"] is None else run.record["best_epoch"] + 1,
                "seconds": run.epochs["seconds"][-1],
                "where": measured_where(run.record.get("made")),
            }
            for run in runs
        ],
        "differing": [(key, [_shown(settings.get(key)) for settings in flat]) for key in differing],
        "same": [(key, _shown(flat[0].get(key))) for key in keys if key not in differing],
        "credits": _credits(image_root),
    }


def _size(folder: Path) -> str:
    """The bytes of a folder's files in decimal units."""
    size = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _credits(image_root: Path) -> str | None:
    """The licence text that lies beside the photographs, without its table; None if there is none."""
    path = image_root / "ATTRIBUTION.md"
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line for line in lines if line.strip() and not line.startswith(("#", "|")))


def _detector(recipe: dict) -> str:
    detector = recipe.get("detector", "unknown")
    return detector if isinstance(detector, str) else str(detector.get("name", detector))


def _flat(settings: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted keys."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(value: object) -> str:
    return "–" if value is None else json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
