"""The cache: what was computed once is found again by what went in.

A recipe's results are finished shards, each with a sidecar that says which pictures (by their sha256) are in its rows.
There is no database: a folder a recipe, shards by the content that they were asked for. A store is put together from
what is there and what has to be computed (docs/architecture.md, "The cache"). Results enter by whole shards; which came
first stays. Many processes and machines may share a cache.

    CACHE/regions/RECIPE/VERSION/NAME.h5, NAME.json
    CACHE/regions/RECIPE/about.json, versions.json
    CACHE/runs/KEY/about.json, epochs.csv, model
"""

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

from pydantic import Field

from extract.stores.hdf5 import MappedHDF5
from manifests.errors import InputError
from manifests.files import abandoned, atomic, fingerprint, json_text, sha256, temporary, write_json
from manifests.locks import sole_writer
from manifests.progress import progress
from manifests.typed import Count, Digest, Written, read_checked

ABOUT = "about.json"
_USED = "used"  # the name of a marker, with host and process
_BEAT, _LONG = 600, 24 * 60 * 60  # seconds between signs of life, and without one until another machine's is dead
KINDS = ("regions", "runs")
_NAME = re.compile("[0-9a-f]{32}")
_SAMPLE = 8  # pictures that are computed again where the code has another meaning


@dataclass(frozen=True, slots=True)
class Place:
    """Where a result lies: the shard's file and the row in it."""

    file: Path
    row: int


Version = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class Versions(Written):
    """Which versions of a recipe's results some code makes, and which it doesn't."""

    accepted: list[Version]
    refused: list[Version]


class Sidecar(Written):
    """What every sidecar has; a stage adds facts of its own."""

    sha256: Digest
    size: Count
    pictures: list[Digest]


class Cache:
    """The results of one recipe.

    Parameters
    ----------
    root : the machine's cache folder.
    kind, recipe : "regions", and what decides the numbers by design, as JSON.
    code : fingerprint of the code that computes (`extract.engine.code`). Results of another one count once a sample of
        them was computed again and is equal.
    sidecar : what a sidecar says.
    sound : whether a shard with the results of so many pictures has the arrays that it should have.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        recipe: Mapping[str, Any],
        code: str,
        sidecar: type[Sidecar],
        sound: Callable[[MappedHDF5, int], bool],
    ):
        self.recipe, self.code, self._sidecar, self._sound = recipe, code, sidecar, sound
        self.folder = Path(root).expanduser() / kind / fingerprint(recipe)[:32]
        self.versions: list[str] = []
        self._shards: dict[Path, MappedHDF5 | None] = {}

    def open(self, wanted: Collection[str], differs: Callable[[dict[str, Place]], str | None]) -> tuple[int, list[str]]:
        """Find out which versions of the results the code at hand makes.

        Parameters
        ----------
        wanted : sha256 of the pictures whose results are asked for.
        differs : computes some pictures (sha256 -> place) again, and says which number is another one, or None.

        Returns how many pictures were computed for that, and what to tell.
        """
        path, told, computed = self.folder / "versions.json", [], 0
        with sole_writer(path, "look into the cache"):
            known = _read(path, dict[str, Versions]) or {}
            ours = Versions(**known.get(self.code, {"accepted": [], "refused": []}))
            others = {version for each in known.values() for version in each["accepted"]}
            undecided = sorted(others.difference(ours.accepted, ours.refused))
            missing = set(wanted).difference(self._rows(ours.accepted, set(wanted))) if undecided else set()
            for version in undecided:
                there = self._rows([version], missing)
                sample = _spread(there)
                if not sample:  # nothing that is still to be computed
                    continue
                computed += len(sample)
                difference = differs(sample)
                if difference is None:
                    ours.accepted.append(version)
                    missing.difference_update(there)
                    told.append(f"new code, the same numbers in {len(sample)} pictures: what is known is used")
                else:
                    ours.refused.append(version)
                    told.append(f"new code, other numbers ({difference}): what is known of older code isn't used")
            if not ours.accepted:
                ours.accepted.append(self.code[:16])
            write_json(self.folder / ABOUT, {"recipe": self.recipe})
            write_json(path, known | {self.code: ours.model_dump()})
        self.versions = ours.accepted
        return computed, told

    def rows(self, wanted: Collection[str]) -> dict[str, Place]:
        """Where the results of some pictures lie, by their sha256, as far as there are any."""
        return self._rows(self.versions, set(wanted))

    def _rows(self, versions: Iterable[str], wanted: set[str]) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for version in versions:
            for sidecar in sorted((self.folder / version).glob("*.json")):
                done = _read(sidecar, self._sidecar)
                for row, digest in enumerate(done["pictures"] if done else ()):
                    if digest in wanted and digest not in found:
                        found[digest] = Place(sidecar.with_suffix(".h5"), row)
        return found

    def finished(self, content: Any) -> dict[str, Any] | None:
        """The sidecar of a shard of a certain content (JSON) that is whole, with its ``path``."""
        for version in self.versions:
            shard = self._place(version, content)
            done = _read(shard.with_suffix(".json"), self._sidecar)
            if done is not None and self.shard(shard) is not None:
                return done | {"path": str(shard)}
        return None

    def draft(self, content: Any) -> Path:
        """Where this process is to write a shard of a certain content, for `publish`."""
        return temporary(self._place(self.versions[0], content))

    def publish(self, draft: Path, content: Any, pictures: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Make a draft the shard of its content, with a sidecar that says of which picture each row is; the sidecar,
        with its ``path``. Where another process was first, it is that one's."""
        shard = self._place(self.versions[0], content)
        done = {"sha256": sha256(draft), "size": draft.stat().st_size, "pictures": list(pictures), **facts}
        draft.chmod(0o444)
        with sole_writer(shard, "shard of the cache"):
            self._shards.pop(shard, None)
            first = self.finished(content)
            if first is not None:
                draft.unlink()
                return first
            # A damaged shard goes first: no sidecar ever stands beside another one's shard.
            shard.with_suffix(".json").unlink(missing_ok=True)
            os.replace(draft, shard)
            with atomic(shard.with_suffix(".json"), make_folder=False) as sidecar:
                sidecar.write_text(json_text(done), encoding="utf-8")
            self._shards.pop(shard, None)
        return done | {"path": str(shard)}

    def shard(self, file: Path) -> MappedHDF5 | None:
        """A shard of the cache, if it is as its sidecar says: it is hashed once."""
        if file not in self._shards:
            self._shards[file] = self._opened(file)
        return self._shards[file]

    def _opened(self, file: Path) -> MappedHDF5 | None:
        done = _read(file.with_suffix(".json"), self._sidecar)
        if done is None or not file.is_file() or done["sha256"] != sha256(file):
            return None
        try:
            shard = MappedHDF5(file)
            return shard if self._sound(shard, len(done["pictures"])) else None
        except (InputError, KeyError):
            return None

    def prepare(self) -> None:
        """Make the folder of new results, without what killed processes were writing there."""
        folder = self.folder / self.versions[0]
        folder.mkdir(parents=True, exist_ok=True)
        for left_behind in abandoned(folder):
            left_behind.unlink(missing_ok=True)

    def _place(self, version: str, content: Any) -> Path:
        return self.folder / version / f"{fingerprint(content)[:32]}.h5"


@contextmanager
def in_use(entry: Path) -> Iterator[None]:
    """Keep an entry of the cache from being removed meanwhile; what was used last is removed last.

    Raises `InputError` where nothing can be written there.
    """
    marker, ended = temporary(entry / _USED), Event()
    try:
        entry.mkdir(parents=True, exist_ok=True)
        for left_behind in abandoned(entry, _USED):
            left_behind.unlink(missing_ok=True)
        marker.touch()
        os.utime(entry)
    except PermissionError as error:
        raise InputError(
            f"nothing can be written there ({error.strerror})",
            where=entry,
            fix="let your group write in the cache, or set SELFALIGN_CACHE to a folder of yours",
        ) from error

    def beat() -> None:
        while not ended.wait(_BEAT):
            with suppress(OSError):
                marker.touch()

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        marker.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Entry:
    """A recipe's results, or a trained run: its folder, bytes that nothing but the cache holds, and bytes in all; when
    it was used last (seconds since the epoch), and whether it is in use."""

    folder: Path
    own: int
    size: int
    last: float
    used: bool


def entries(root: Path) -> list[Entry]:
    """What a cache holds, the least recently used first. Other folders there are none of ours, and aren't looked at."""
    named = (path for kind in KINDS for path in (Path(root).expanduser() / kind).glob("*"))
    ours = [path for path in named if _NAME.fullmatch(path.name) and (path / ABOUT).is_file()]
    found = []
    for path in ours:
        with suppress(FileNotFoundError):  # somebody is removing it
            found.append(_entry(path))
    return sorted(found, key=lambda entry: entry.last)


def _entry(folder: Path) -> Entry:
    states = [path.stat() for path in folder.rglob("*") if path.is_file()]
    own = sum(state.st_size for state in states if state.st_nlink == 1)
    return Entry(folder, own, sum(state.st_size for state in states), folder.stat().st_mtime, _is_used(folder))


def _is_used(folder: Path) -> bool:
    """Whether a process of this machine that is alive, or one of another that gave a sign of life, uses an entry."""
    dead = {path for path in abandoned(folder, _USED) if path != temporary(folder / _USED)}
    ours = f".{_USED}.{platform.node()}."
    return any(
        path not in dead and (path.name.startswith(ours) or time.time() - path.stat().st_mtime < _LONG)
        for path in folder.glob(f".{_USED}.*")
    )


def prune(root: Path, bound: float) -> list[Entry]:
    """Remove the least recently used entries until the others hold at most `bound` bytes that nothing else holds.

    What is in use stays. Returns what was removed.
    """
    found, removed = entries(root), []
    own = sum(entry.own for entry in found)
    for entry in found:
        if own <= bound:
            break
        if entry.own and not _is_used(entry.folder):
            with suppress(OSError):  # somebody else removes it, or may
                going = temporary(entry.folder, "old")
                os.replace(entry.folder, going)
                shutil.rmtree(going)
                own -= entry.own
                removed.append(entry)
    return removed


def damaged(root: Path) -> Iterator[Path]:
    """Hash every shard of regions in a cache; gives those that aren't as their sidecar says."""
    sidecars = [path for entry in entries(root) for path in sorted(entry.folder.glob("*/*.json"))]
    for sidecar in progress(sidecars, what="cache", unit="files"):
        shard = sidecar.with_suffix(".h5")
        if shard.is_file() and (_read(sidecar, Sidecar) or {}).get("sha256") != sha256(shard):
            yield shard


def _spread(rows: dict[str, Place]) -> dict[str, Place]:
    """Some of many, evenly."""
    digests = sorted(rows)
    step = max(1, len(digests) // _SAMPLE)
    return {digest: rows[digest] for digest in digests[::step][:_SAMPLE]}


def _read(path: Path, kind: Any) -> dict[str, Any] | None:
    """A JSON file as it stands, if it is of that kind: what is damaged in a cache is made again."""
    try:
        return read_checked(path, kind, fix="remove it")[1]
    except InputError:
        return None
