"""What `selfalign clean` lists and removes: staging folders, and what killed processes were writing beside artifacts.

A stage that goes on where it was killed needs its staging folder; one whose parameters have changed since never will.
"""

import json
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from extract.engine.finished import ABOUT
from manifests.errors import InputError
from manifests.files import abandoned
from manifests.locks import sole_writer
from pipeline import places

_DAY = 24 * 60 * 60
_RUN = re.compile("train-(.+)-[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder of unfinished work. `of` is locked while somebody works there. Then come its bytes, the days
    since it was last written to, and the work it is of."""

    path: Path
    of: Path
    size: int
    days: float
    work: str


def run(staging: Path, *, days: float = 0, remove: bool = False) -> str:
    """List what nothing was written to for `days`, and `remove` what nobody uses; the answer as text."""
    found = [each for each in (*_staged(staging), *_abandoned()) if each.days >= days]
    if not found:
        return "nothing to clean"
    lines, freed = [], 0
    for each in sorted(found, key=lambda each: -each.size):
        outcome = ""
        if remove:
            try:
                with sole_writer(each.of, "work there", wait=False):
                    shutil.rmtree(each.path) if each.path.is_dir() else each.path.unlink(missing_ok=True)
                freed += each.size
                outcome = "  removed"
            except InputError as error:
                outcome = f"  kept: {error.what}"
        lines.append(f"{_megabytes(each.size)}  {each.days:6.1f} days  {each.path}  ({each.work}){outcome}")
    total = _megabytes(sum(each.size for each in found)).strip()
    lines.append(
        f"{_megabytes(freed).strip()} freed"
        if remove
        else f"{total} in all; `selfalign clean --yes` removes it: a stage that is run again begins anew then"
    )
    return "\n".join(lines)


def _staged(staging: Path) -> Iterator[Leftover]:
    for path in sorted(staging.iterdir()) if staging.is_dir() else ():
        if path.is_dir() and (work := _work(path)):
            yield _leftover(path, path, work)


def _work(folder: Path) -> str | None:
    """What a staging folder is for; None where it is none of ours."""
    try:
        return str(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["work"])
    except (OSError, ValueError, KeyError, TypeError):
        if found := _RUN.fullmatch(folder.name):
            return f"training of {found[1]}"
        return f"study {folder.name.removeprefix('study-')}" if folder.name.startswith("study-") else None


def _abandoned() -> Iterator[Leftover]:
    """What killed processes were writing beside artifacts. A folder that was moved away for one that never came is the
    only one: the next writer puts it back."""
    for root in (places.DATA, places.RUNS, places.ENSEMBLES, places.STUDIES, places.INDEXES):
        for folder in (root, *(path for path in root.glob("*") if path.is_dir())):
            for path in abandoned(folder):
                out = path.with_name(path.name[1:].rpartition(f".{platform.node()}.")[0])
                if path.suffix == ".tmp" or out.exists():
                    yield _leftover(path, out, "killed while it was written")


def _leftover(path: Path, of: Path, work: str) -> Leftover:
    files = [path, *path.rglob("*")]
    states = [file.stat() for file in files if file.exists()]
    last = max(state.st_mtime for state in states)
    return Leftover(path, of, sum(state.st_size for state in states), (time.time() - last) / _DAY, work)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:10,.1f} MB"
