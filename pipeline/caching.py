"""What `selfalign cache list` shows."""

import json
import time

from extract.engine.cache import ABOUT, Entry, entries
from pipeline.machine import Machine

_DAY = 24 * 60 * 60


def listing(machine: Machine) -> str:
    """A line for each entry of the cache, and one that sums up."""
    found = entries(machine.cache)
    own = sum(entry.own for entry in found) / 1e9
    folder = machine.cache.expanduser()
    total = f"{folder}: {own:.2f} GB that nothing else holds, of at most {machine.cache_gb:g} (SELFALIGN_CACHE_GB)"
    heading = f"{'in the cache':>13}  {'also in stores':>20}  {'unused for':>11}  entry (what it is of)"
    return "\n".join([heading, *(_line(entry) for entry in found), total])


def _line(entry: Entry) -> str:
    days = (time.time() - entry.last) / _DAY
    linked = f"{(entry.size - entry.own) / 1e6:,.1f} MB linked"
    used = ", in use" if entry.used else ""
    name = f"{entry.folder.parent.name}/{entry.folder.name}"
    return f"{entry.own / 1e6:10,.1f} MB  {linked:>20}  {days:6.1f} days  {name}  ({_of(entry)}{used})"


def _of(entry: Entry) -> str:
    try:
        about = json.loads((entry.folder / ABOUT).read_text(encoding="utf-8"))
        if entry.folder.parent.name == "runs":
            settings = about["key"]["settings"]
            return f"{settings['base']['name']} on {settings['dataset']}, seed {settings['seed']}"
        if about.get("of"):
            return about["of"]
        recipe = about["recipe"]
        chosen = recipe["selection"]["rule"] if "selection" in recipe else f"{recipe.get('boxes', 'fixed')} boxes"
        return f"detector {recipe['detector']['name']}, {chosen}"
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
