"""Runs as `params.yaml` had them before their losses were one map: what to write in their place."""

from collections.abc import Mapping
from typing import Any

import yaml

# Where a loss's keys were -> its name.
MOVED = {
    ("triplet",): "triplet",
    ("contrast",): "contrast",
    ("base", "caption_decoder"): "generation",
    ("selfalign", "concept"): "lca",
    ("selfalign", "context"): "cra",
    ("selfalign", "word_region"): "word_region",
    ("aladin", "alignment"): "alignment",
    ("aladin", "distillation"): "distillation",
    ("cusa", "contrast"): "cusa_contrast",
    ("cusa", "cross_modal"): "csa",
    ("cusa", "uni_modal"): "usa",
}
SECTIONS = ("triplet", "contrast", "selfalign", "aladin", "cusa")
# Parts that were there with their section.
_ALWAYS = {"aladin": ("alignment",), "cusa": ("contrast", "cross_modal", "uni_modal")}


def translated(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keys of a run that changed, as they are written now; None for a run that is written so."""
    base = run.get("base")
    of_base = {"caption_decoder", "diversity"} & base.keys() if isinstance(base, Mapping) else set()
    if not of_base and not any(section in run for section in SECTIONS):
        return None
    new: dict[str, Any] = {}
    if of_base:
        new["base"] = {key: value for key, value in base.items() if key not in of_base}
    losses = dict(run.get("losses") or {})
    for place, name in MOVED.items():
        keys: Any = run
        for key in place:
            keys = keys.get(key) if isinstance(keys, Mapping) else None
        section = run.get(place[0])
        if keys is None and isinstance(section, Mapping) and place[-1] in _ALWAYS.get(place[0], ()):
            keys = {}
        if isinstance(keys, Mapping) and keys.get("weight") != 0:
            losses[name] = dict(keys)
    if isinstance(base, Mapping) and base.get("name") == "camera" and base.get("diversity", 0.01):
        losses["diversity"] = {"weight": base["diversity"]} if "diversity" in base else {}
    if "cusa_contrast" in losses:
        losses["cusa_contrast"] |= {"reads": "embedding", "divided": False}
    if "alignment" in losses:
        over = losses["alignment"].pop("over_words", "sum")
        losses["alignment"] |= {"aggregation": "MrAVGw"} if over == "mean" else {}
        losses["alignment"].setdefault("all_negatives_epochs", 1)
        losses["alignment"].setdefault("locals", "projected")
    new["losses"] = losses
    selfalign = run.get("selfalign")
    if isinstance(selfalign, Mapping) and selfalign.get("bag") is not None:
        new["bag"] = selfalign["bag"]
    return new


def written(block: Mapping[str, Any]) -> str:
    """A block as YAML in one line, to paste."""
    return yaml.safe_dump(dict(block), default_flow_style=True, width=10**6, sort_keys=False).strip()[1:-1]
