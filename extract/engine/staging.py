"""Staging: where shards wait, finished and checked, until the whole store can be moved into place at once.

DVC removes a stage's outs before it runs, so a killed extraction would lose everything. The staging folder lies
elsewhere and is keyed by all that decides the bytes; a shard there counts only with its done-marker, a small JSON
with the shard's size and sha256 and a fingerprint of its own (docs/architecture.md, "Resume").
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from extract.stores.intact import INDEX
from manifests.errors import InputError
from manifests.files import abandoned, atomic, fingerprint, json_text, link_or_copy, sha256, whole_folder
from manifests.locks import sole_writer

_AGAIN = "run the stage again: it makes only what is missing"
ABOUT = "about.json"  # in a staging folder: what it is for


class Staging:
    """The shards of one store in the making; workers on machines that share `root` may finish shards in it.

    Parameters
    ----------
    root : the machine's staging folder.
    key : JSON that names everything on which the bytes depend: another key is another folder.
    """

    def __init__(self, root: Path, key: Any):
        self.key, self.folder = key, Path(root) / fingerprint(key)[:32]

    @contextmanager
    def alone(self, out: Path, work: str) -> Iterator[bool]:
        """Hold the locks of `out` and of this folder, which is made; gives whether `out` is made already.

        `work` names what is done, for whoever waits: "extraction of coco".
        """
        with sole_writer(out, work, self.key, staging=self.folder) as made:
            if not made:
                self.folder.mkdir(exist_ok=True)
                with atomic(self.folder / ABOUT) as about:
                    about.write_text(json_text({"work": work, "out": str(Path(out).absolute())}), encoding="utf-8")
                for left_behind in abandoned(self.folder):
                    left_behind.unlink(missing_ok=True)
            yield made

    def discard(self) -> None:
        """Remove all that is staged under this key."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finished(self, shard: Path) -> dict[str, Any] | None:
        """The done-marker of a shard that is whole, else None; a shard that doesn't match its marker is removed."""
        marker = shard.with_suffix(".json")
        if not (shard.is_file() and marker.is_file()):
            return None
        try:
            done = json.loads(marker.read_text(encoding="utf-8"))
            untouched = done.pop("fingerprint") == fingerprint(json_text(done))
            whole = untouched and done["file"] == shard.name and done["sha256"] == sha256(shard)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if whole:
            return done
        marker.unlink()
        shard.unlink()
        return None

    def finish(self, shard: Path, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the done-marker of a shard that lies whole under its name; `facts` travel with it."""
        done = {"file": shard.name, "sha256": sha256(shard), "size": shard.stat().st_size, **facts}
        with atomic(shard.with_suffix(".json"), make_folder=False) as marker:
            marker.write_text(json_text(done | {"fingerprint": fingerprint(json_text(done))}), encoding="utf-8")
        return done

    @contextmanager
    def install(self, out: Path, done: Sequence[dict[str, Any]]) -> Iterator[Path]:
        """Give a folder with the shards of these done-markers, to which index, recipe and card are added; at the end it
        becomes `out` in one step, and the staging folder is removed.

        Raises `InputError`, and installs nothing, where a shard is missing or has another size.
        """
        with installing(out, [(self.folder / shard["file"], shard) for shard in done]) as ready:
            yield ready
        # A worker that was given up for lost may be writing there to this day: it makes no folder.
        self.discard()


@contextmanager
def installing(out: Path, shards: Iterable[tuple[Path, dict[str, Any]]]) -> Iterator[Path]:
    """Give a folder with finished shards, to which index, recipe and card are added; at the end it becomes `out`.

    `shards` are each one's place, and its name in the store (``file``) and bytes (``size``). Raises `InputError`, and
    installs nothing, where a shard is missing, has another size, or isn't listed by the index.
    """
    with whole_folder(out) as ready, filled(ready, shards):
        yield ready


@contextmanager
def filled(folder: Path, shards: Iterable[tuple[Path, dict[str, Any]]]) -> Iterator[Path]:
    """As `installing`, but in a folder of a folder that becomes whole."""
    folder.mkdir(exist_ok=True)
    for source, shard in shards:
        link_or_copy(source, folder / shard["file"])
        if (size := (folder / shard["file"]).stat().st_size) != shard["size"]:
            raise InputError(f"it has {size} bytes, it was finished with {shard['size']}", where=source, fix=_AGAIN)
    yield folder
    _require_listed(folder)


def _require_listed(store: Path) -> None:
    """Raise `InputError` unless the shards in a folder are those that its index lists."""
    index = json.loads((store / INDEX).read_text(encoding="utf-8"))
    listed = sorted(shard["file"] for shard in index["shards"])
    there = sorted(path.name for path in store.glob("*.h5"))
    if listed != there:
        raise InputError(
            f"its index lists {len(listed)} shards, {len(there)} are there: {', '.join(sorted({*listed} ^ {*there}))}",
            where=store,
            fix=_AGAIN,
        )
