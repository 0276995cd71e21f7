"""The cache: results are found again by their inputs.

A recipe's results are finished shards. Each has a sidecar that names the item of every row (pictures, captions: by
their sha256). There is no database: a folder a recipe, shards by the content that they were asked for. A store is put
together from cached and new results (docs/architecture.md, "The cache"). Results enter by whole shards; the first one
stays. Many processes and machines may share a cache.

    CACHE/KIND/RECIPE/VERSION/NAME.h5, NAME.json       KIND: regions, text_features, teachers
    CACHE/KIND/RECIPE/about.json, versions.json
    CACHE/runs/KEY/about.json, epochs.csv, model
"""

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, Field

from extract.engine.finished import ABOUT, Finished, Marker, read_marker
from extract.stores.hdf5 import MappedHDF5
from manifests.errors import InputError
from manifests.files import abandoned, fingerprint, sha256, temporary, write_json
from manifests.locks import sole_writer
from manifests.progress import progress
from manifests.typed import Digest, Written

_USED = "used"  # the name of a marker, with host and process
_BEAT, _LONG = 600, 24 * 60 * 60  # seconds between signs of life, and without one until another machine's is dead
KINDS = ("regions", "text_features", "teachers", "runs")
S = TypeVar("S")  # the results of a sample
_NAME = re.compile("[0-9a-f]{32}")
_SAMPLE = 8  # items that are computed again where the code has another meaning


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


class Sidecar(Marker):
    """The marker of a shard of the cache: the item (by its sha256) of each row, None for a row without a result."""

    items: list[Digest | None] = Field(validation_alias=AliasChoices("items", "pictures"))


class Cache:
    """The results of one recipe.

    Parameters
    ----------
    root : the machine's cache folder.
    kind, recipe : "regions", and all that decides the numbers by design, as JSON.
    code : fingerprint of the code that computes (`extract.engine.code`). Results of another one count once a sample of
        them was computed again and is equal.
    sidecar : the type of a sidecar.
    sound : whether a shard with the results of so many items has the arrays that it should have.
    of : names the recipe to people.
    exact : take only results of this environment (the sidecars' ``environment``); None takes any.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        recipe: Mapping[str, Any],
        code: str,
        sidecar: type[Sidecar] = Sidecar,
        sound: Callable[[MappedHDF5, int], bool] = lambda *_: True,
        of: str = "",
        exact: Mapping[str, Any] | None = None,
    ):
        self.of, self.recipe, self.code, self._sidecar, self._sound_arrays = of, recipe, code, sidecar, sound
        self.folder = Path(root).expanduser() / kind / fingerprint(recipe)[:32]
        self.exact, self.versions = exact, []
        self._folders: dict[str, Finished] = {}
        self._shards: dict[Path, MappedHDF5] = {}

    def open(
        self,
        requested: Collection[str],
        again: Callable[[dict[str, Place]], tuple[str | None, S]],
        keep: Callable[[S], object],
        unit: str,
    ) -> tuple[int, list[str]]:
        """Find out which versions of the results the code at hand makes.

        Parameters
        ----------
        requested : sha256 of the items whose results are asked for.
        again : computes some items (sha256 -> place) again: which number is another one, or None, and the new results.
        keep : publishes new results that differ: nothing is computed twice, and a resumed run reads them too.
        unit : the name of items, in the plural.

        Returns how many items were computed for that, and notes to print.
        """
        path, notes, computed, differing = self.folder / "versions.json", [], 0, []
        with sole_writer(path, "look into the cache"):
            known = read_marker(path, dict[str, Versions]) or {}
            ours = Versions(**known.get(self.code, {"accepted": [], "refused": []}))
            others = {version for each in known.values() for version in each["accepted"]}
            undecided = sorted(others.difference(ours.accepted, ours.refused))
            missing = set(requested).difference(self._rows(ours.accepted, set(requested))) if undecided else set()
            for version in undecided:
                there = self._rows([version], missing)
                sample = _spread(there)
                if not sample:  # nothing that is still to be computed
                    continue
                computed += len(sample)
                difference, results = again(sample)
                if difference is None:
                    ours.accepted.append(version)
                    missing.difference_update(there)
                    notes.append(f"new code, the same numbers in {len(sample)} {unit}: cached results are used")
                else:
                    ours.refused.append(version)
                    differing.append(results)
                    notes.append(f"new code, other numbers ({difference}): results of older code aren't used")
            if not ours.accepted:
                ours.accepted.append(self.code[:16])
            self.versions = ours.accepted
            write_json(self.folder / ABOUT, {"recipe": self.recipe, "of": self.of})
            self.prepare()
            for results in differing:
                keep(results)
            write_json(path, known | {self.code: ours.model_dump()})
        return computed, notes

    def rows(self, requested: Collection[str], excluding: Collection[Any] = ()) -> dict[str, Place]:
        """Where the results of some items lie, by their sha256, as far as there are any. Shards of the contents
        `excluding` are skipped."""
        names = (name for each in excluding for name in self._contents(each))
        return self._rows(self.versions, set(requested), {self._in(self.versions[0]).path(name).name for name in names})

    def _rows(
        self, versions: Iterable[str], requested: set[str], excluding: Collection[str] = frozenset()
    ) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for version in versions:
            for sidecar in sorted((self.folder / version).glob("*.json")):
                shard = sidecar.with_suffix(".h5")
                done = None if shard.name in excluding else read_marker(sidecar, self._sidecar)
                for row, digest in enumerate(_items(done) if done and self._taken(done) else ()):
                    if digest in requested and digest not in found:
                        found[digest] = Place(shard, row)
        return found

    def finished(self, content: Any) -> dict[str, Any] | None:
        """The sidecar of a shard of a certain content (JSON) that is whole, with its ``path``."""
        names = self._contents(content)
        found = (self._in(version).finished(name) for version in self.versions for name in names)
        return next((done for done in found if done is not None and self._taken(done)), None)

    def draft(self, content: Any) -> Path:
        """Where this process is to write a shard of a certain content, for `publish`."""
        return self._in(self.versions[0]).draft(self._contents(content)[-1])

    def publish(self, draft: Path, content: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
        """`Finished.publish`; the facts' ``items`` say of which item (sha256) each row is."""
        return self._in(self.versions[0]).publish(draft, self._contents(content)[-1], facts)

    def shard(self, file: Path) -> MappedHDF5 | None:
        """A shard of the cache, if it is as its sidecar says: it is hashed once."""
        done = self._in(file.parent.name).whole(file)
        if done is None or not self._taken(done):
            return None
        return self._shards.setdefault(file, MappedHDF5(file))

    def prepare(self) -> None:
        """Make the folder of new results, and remove killed processes' files from it."""
        self._in(self.versions[0]).prepare()

    def _contents(self, content: Any) -> list[Any]:
        """The contents that may name a shard. One of an exact environment must not be taken for any other."""
        return [content] if self.exact is None else [content, {"content": content, "environment": self.exact}]

    def _taken(self, done: Mapping[str, Any]) -> bool:
        return self.exact is None or done["environment"] == self.exact

    def _in(self, version: str) -> Finished:
        if version not in self._folders:
            self._folders[version] = Finished(self.folder / version, ".h5", self._sidecar, self._sound)
        return self._folders[version]

    def _sound(self, shard: Path, done: dict[str, Any]) -> bool:
        try:
            return self._sound_arrays(MappedHDF5(shard), len(_items(done)))
        except (InputError, KeyError):
            return False


def _items(done: dict[str, Any]) -> list[str | None]:
    return done["items"] if "items" in done else done["pictures"]  # shards of before other items were cached


@contextmanager
def in_use(entry: Path) -> Iterator[None]:
    """Keep an entry of the cache from being removed meanwhile, and note its use: the last used is removed last.

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
    """A recipe's results, or a trained run: its folder, bytes that only the cache holds, and bytes in all. It also has
    the time of its last use (seconds since the epoch), and whether it is in use."""

    folder: Path
    own: int
    size: int
    last: float
    used: bool


def entries(root: Path) -> list[Entry]:
    """The entries of a cache, the least recently used first. Other folders there are skipped."""
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

    Entries in use stay. Returns the removed ones.
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
    """Hash every shard in a cache; gives those that aren't as their sidecar says."""
    sidecars = [path for entry in entries(root) for path in sorted(entry.folder.glob("*/*.json"))]
    for sidecar in progress(sidecars, what="cache", unit="files"):
        shard = sidecar.with_suffix(".h5")
        if shard.is_file() and (read_marker(sidecar, Sidecar) or {}).get("sha256") != sha256(shard):
            yield shard


def _spread(rows: dict[str, Place]) -> dict[str, Place]:
    """Take some items of many, evenly spread."""
    digests = sorted(rows)
    step = max(1, len(digests) // _SAMPLE)
    return {digest: rows[digest] for digest in digests[::step][:_SAMPLE]}
