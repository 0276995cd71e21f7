"""Staging: where shards wait, finished and checked, until the whole store can be moved into place at once.

DVC removes a stage's outs before it runs, so a killed extraction would lose everything. The staging folder lies
elsewhere and is keyed by all that decides the bytes; a shard there counts only with its done-marker, a small JSON
with the shard's sha256 (docs/architecture.md, "Resume").
"""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from manifests.files import fingerprint, room_for, sha256, whole_folder, write_json

_SHARD_MARKER = re.compile(r"\d+\.json")


class Staging:
    """The shards of one store in the making; many processes, on machines that share `root`, may finish shards in it.

    Parameters
    ----------
    root : the machine's staging folder.
    key : JSON that names everything on which the bytes depend: another key is another folder.
    """

    def __init__(self, root: Path, key: Any):
        self.folder = Path(root) / fingerprint(key)[:32]
        self._root_is_new = not Path(root).exists()
        with room_for(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def discard_unfinished(self) -> None:
        """Remove the files that a killed run was writing: for the one process that is about to have shards made."""
        for stale in self.folder.glob(".*.tmp"):
            stale.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove all that is staged under this key, and the staging folder too where it was made for it alone."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._root_is_new:
            with suppress(OSError):
                self.folder.parent.rmdir()

    def finished(self, shard: Path) -> dict[str, Any] | None:
        """The done-marker of a shard that is whole, else None; a shard that doesn't match its marker is removed."""
        marker = shard.with_suffix(".json")
        if not (shard.is_file() and marker.is_file()):
            return None
        try:
            done = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            done = {"sha256": None}
        if done["sha256"] == sha256(shard):
            return done
        marker.unlink()
        shard.unlink()
        return None

    def finish(self, shard: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the done-marker of a shard that lies whole under its name; `facts` travel with it."""
        done = {"file": shard.name, "sha256": sha256(shard), **facts}
        write_json(shard.with_suffix(".json"), done)
        return done

    def install(self, out: Path) -> None:
        """Give the folder, without its markers, the name `out` in one step; only then is the staging folder removed."""
        with whole_folder(out) as ready:
            for file in self.folder.iterdir():
                if not (_SHARD_MARKER.fullmatch(file.name) or file.name.startswith(".")):
                    _link_or_copy(file, ready / file.name)
        # A worker that was given up for lost may be writing there to this day.
        shutil.rmtree(self.folder, ignore_errors=True)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
