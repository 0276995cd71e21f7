"""The origin of a store: lines of ``made.jsonl`` beside it, so that a store made again is the same to the byte."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from extract.stores.intact import INDEX
from manifests.files import canonical_json, fingerprint, sha256, write_text
from manifests.schema import SPLITS

MADE = "made.jsonl"


def note_made(out: Path, recipe_hash: str, *packages: str, **facts: Any) -> None:
    """Add a line to ``made.jsonl`` beside the store `out`. It has a hash of the store's index, time and machine,
    commit, Python, versions of `packages`, and further `facts`."""
    git = shutil.which("git")
    asked = git and subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    made = {
        "store": Path(out).name,
        "recipe_hash": recipe_hash,
        "content": _content(out),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in packages},
        "commit": asked.stdout.strip() or None if asked else None,
        **facts,
    }
    with open(Path(out).with_name(MADE), "a", encoding="utf-8") as file:
        file.write(canonical_json(made) + "\n")


def made_in(shards: Iterable[Mapping[str, Any]]) -> list[Any]:
    """The environments that markers of shards name, each once."""
    return list({canonical_json(shard["environment"]): shard["environment"] for shard in shards}.values())


def embed_made(stores: Iterable[Path], folder: Path) -> None:
    """Write `folder`/``made.jsonl`` with the origin of the stores that go into it. Of each store it has the first line
    beside it on this content, without the machine's name. Without such lines no file is written.

    It is for people: no index lists it, and nothing compares it.
    """
    found = [line for store in stores for line in _first_made(Path(store))]
    if found:
        write_text(Path(folder) / MADE, "".join(canonical_json(line) + "\n" for line in found))


def _first_made(store: Path) -> Iterator[dict[str, Any]]:
    whole = store.parent if store.name in SPLITS else store
    try:
        content, text = _content(whole), whole.with_name(MADE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    for line in text.splitlines():
        with suppress(ValueError, AttributeError):
            made = json.loads(line)
            if (made.get("store"), made.get("content")) == (whole.name, content):
                made.pop("host", None)
                yield made
                return


def _content(store: Path) -> str:
    """The name of the content of a store, or of a data set's stores of each split: their indexes' sha256."""
    found = [store / INDEX] if (store / INDEX).is_file() else [store / split / INDEX for split in SPLITS]
    return fingerprint([sha256(path) for path in found if path.is_file()])
