"""`params.yaml` of an older project as it is written now: only what moved changes, every other byte stays."""

from collections.abc import Iterator, Mapping
from typing import Any

from demo.detector.demo import OLD_WEIGHTS
from extract.stores.teachers import SIDES
from extract.teachers.settings import named
from manifests.readers import READERS
from pipeline import editing, places, strict_yaml
from train.old_runs import MOVED, SECTIONS, translated

# Losses' keys in a study, dotted below the run, and what they are now; the longest first.
_KEYS = {".".join(place): f"losses.{name}" for place, name in MOVED.items()} | {"selfalign.bag": "bag"}


def rewritten(text: str) -> tuple[str, list[str]]:
    """The text as it is written now, and what was changed, a line each.

    Raises `yaml.YAMLError` and `ValueError` for a text that isn't the YAML of a project.
    """
    changes: list[str] = []
    values = strict_yaml.load(text)
    for name, dataset in _items(values, "datasets"):
        source = dataset.get("source") if isinstance(dataset, dict) else None
        if isinstance(source, dict) and "watch" not in source and "captions" in source:
            imported = not READERS.has_own(str(source.get("format")))
            watched = source.get("images") if imported else source.get("boxes") or source["captions"]
            text = editing.insert(text, ("datasets", name, "source"), {"watch": watched})
            changes.append(f"datasets.{name}.source.watch: {watched}, which DVC looks at beside the captions")
    text = _with_packs(text, values, changes)
    text = _with_losses(text, values, changes)
    text = _with_parts(text, values, changes)
    for name, study in _items(values, "studies"):
        if isinstance(study, dict) and study.get("values") == [] and "key" in study:
            text = editing.cut(text, ("studies", name))
            changes.append(
                f"studies.{name}: taken out; its values were left to DVC's queue (docs/evaluation.md, Studies)"
            )
        elif isinstance(study, dict) and {"key", "values"} <= study.keys():
            text = editing.insert(text, ("studies", name), {"vary": {_key(str(study["key"])): study["values"]}})
            for key in ("key", "values"):
                text = editing.cut(text, ("studies", name, key))
            changes.append(f"studies.{name}: vary, in the place of key and values")

    def spelling(path: tuple[str, ...], is_key: bool, value: str) -> str | None:
        if path[:1] == ("datasets",) and not is_key and value == OLD_WEIGHTS:
            new = places.DEMO_WEIGHTS.as_posix()
        elif path[:1] == ("studies",) and is_key and path[2:] == ("changes",):
            new = _key(value)
        else:
            return None
        if new != value:
            changes.append(f"{'.'.join(path)}: {new} (was {value})")
        return new if new != value else None

    return editing.respell(text, spelling), list(dict.fromkeys(changes))


def _with_packs(text: str, values: Any, changes: list[str]) -> str:
    """The text with a section of its own for packs."""
    if "packs" in values:
        return text
    packs = {name: own["pack"] for name, own in _items(values, "datasets") if isinstance(own, dict) and "pack" in own}
    text = editing.insert(text, "packs", packs)
    for name in packs:
        text = editing.cut(text, ("datasets", name, "pack"))
    changes.append(f"packs: {', '.join(packs) or 'none'}, in a section of its own")
    return text


def _with_parts(text: str, values: Any, changes: list[str]) -> str:
    """The text with the names of teachers, and SPICE among the metrics."""
    for name, teachers in _items(values, "teachers"):
        for side in SIDES:
            was = teachers.get(side) if isinstance(teachers, dict) else None
            if new := named(side, was):
                place = ("teachers", name, side)
                text = editing.insert(text, place, {"name": new["name"]})
                for key in was.keys() - new.keys():
                    text = editing.cut(text, (*place, key))
                changes.append(f"{'.'.join(place)}: name: {new['name']}")
    if "spice" in (evaluate := dict(_items(values, "evaluate"))):
        if jar := evaluate["spice"]:
            text = editing.insert(text, "evaluate", {"metrics": {"spice": {"jar": jar}}})
        text = editing.cut(text, ("evaluate", "spice"))
        changes.append("evaluate.metrics.spice.jar, in the place of evaluate.spice")
    return text


def _with_losses(text: str, values: Any, changes: list[str]) -> str:
    """The text with the losses of each run in one map."""
    runs = [(("runs", name), run) for name, run in _items(values, "runs")]
    for section, own in _items(values, "optional"):
        runs += [(("optional", section, name), run) for name, run in (own.items() if isinstance(own, dict) else ())]
    gone: list[tuple[str, ...]] = []
    for path, run in runs:
        new = translated(run) if isinstance(run, dict) else None
        if new is None or editing.find(text, path) < 0:  # `runs` has those of `optional` by `<<`
            continue
        base = run["base"] if isinstance(run.get("base"), dict) else {}
        old = [(*path, key) for key in SECTIONS if editing.find(text, (*path, key)) >= 0]
        of_base = [(*path, "base", key) for key in base.keys() - new.get("base", base).keys()]
        old += [place for place in of_base if editing.find(text, place) >= 0]
        if not old:  # all of them are merged from another run, and so will be what takes their place
            continue
        text = editing.insert(text, path, {key: new[key] for key in ("losses", "bag") if key in new})
        changes.append(f"{'.'.join(path)}: losses in one map, in the place of {', '.join(p[-1] for p in old)}")
        gone += old
    # The last one first: what an alias names goes after the alias. What an alias repeats goes once, with its anchor.
    while places_left := [(at, path) for path in gone if (at := editing.find(text, path)) >= 0]:
        text = editing.cut(text, max(places_left)[1])
    return text


def _key(dotted: str) -> str:
    for old, new in sorted(_KEYS.items(), key=lambda pair: -len(pair[0])):
        if dotted == old or dotted.startswith(f"{old}."):
            return new + dotted[len(old) :]
    return dotted


def _items(values: Any, section: str) -> Iterator[tuple[str, Any]]:
    found = values.get(section) if isinstance(values, Mapping) else None
    return iter(found.items() if isinstance(found, dict) else ())
