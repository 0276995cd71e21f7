"""The project's own WebDataset shards, as the pack stage writes them (`extract.stores.webdataset` reads them).

Members are read in the archive and never unpacked to disk. An ``index.json`` beside the shards must list them with
their sha256. Other people's shards, without one, must at least be whole archives.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from extract.exchange.source import Bytes, Found, Record, Source, files_in
from extract.stores.fields import LABELS
from extract.stores.intact import INDEX, listed_files
from extract.stores.webdataset import FIX, parse_facts, parse_sample, require_key, sample_places
from manifests.errors import InputError
from manifests.files import sha256
from manifests.imported import FORMATS
from manifests.jsonl import parse_json, read_utf8
from manifests.opening import open_file
from manifests.schema import SPLITS
from manifests.source import LeftOut, SourceCaption, SourceImage

_NAME = re.compile(r".*-(train|val|test)-(\d+)\.tar")


@FORMATS.add("wds")
class WdsSource(Source):
    """Reads one shard or all `*.tar` of a folder, train before val before test.

    A place is the shard's number, the row in it, then offset and length of each member: features, boxes, json.
    """

    captions_in_survey = True

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        self.paths = sorted(files_in(root, "*.tar"), key=_order)
        self._folder = self.paths[0].parent
        self._shards = [Bytes(path, FIX) for path in self.paths]
        self._listed = _listed(self._folder)
        if self.root.is_dir():
            for name in sorted(self._listed or ()):
                if not (self.root / name).is_file():
                    raise InputError(f"the file is missing, {INDEX} lists it", where=self.root / name, fix=FIX)
        self._entries: list[SourceImage] = []

    @staticmethod
    def recognises(root: Path) -> bool:
        first = next(iter(sorted(root.glob("*.tar"))), None) if root.is_dir() else root
        try:
            with open_file(first) as file:
                return next(sample_places(file, first), None) is not None
        except (TypeError, OSError, InputError):
            return False

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        names = self._folder / "classes.json"
        if names.exists():
            value = parse_json(read_utf8(names), path=names, fix=FIX)
            if any(not name.endswith(".tar") for name in self._listed or ()):
                self._hashed(names, lambda _: None)
            self.object_names, self.attribute_names = (_names(value, key, names) for key in ("objects", "attributes"))
        for number, path in enumerate(self.paths):
            self.files[path.name] = self._hashed(path, advance)
            with open_file(path) as file:
                for row, (key, places) in enumerate(sample_places(file, path)):
                    yield self._found(number, row, key, places)

    def _hashed(self, path: Path, advance: Callable[[int], object]) -> str:
        """The sha256 of a file, which must be the index's."""
        digest = sha256(path, advance)
        expected = digest if self._listed is None else self._listed.get(path.name)
        if digest != expected:
            raise InputError(
                f"the file has changed: its sha256 is {digest}, {INDEX} says {expected}"
                if expected
                else f"{INDEX} doesn't list this file",
                where=path,
                fix=FIX if expected else "move it elsewhere, or import it alone from there",
            )
        return digest

    def _found(self, number: int, row: int, key: str, places: list[tuple[int, int]]) -> Found:
        shard = self._shards[number]
        where, beside = f"{shard.path} row {row}", f"{shard.path.name} row {row}"
        facts = parse_facts(shard.read(*places[2], where), where)
        require_key(key, facts, where)
        captions = tuple(SourceCaption(beside, caption) for caption in facts["captions"])
        self._entries.append(SourceImage(beside, facts["id"], key, facts["split"], captions))
        place = (number, row, *(x for place in places for x in place))
        size = (facts["width"], facts["height"])
        return Found(facts["id"], where, place, facts["num_boxes"], size, partial(self.read, place))

    def where(self, place: list[int]) -> str:
        return f"{self._shards[place[0]].path} row {place[1]}"

    def read(self, place: list[int]) -> Record:
        shard, where = self._shards[place[0]], self.where(place)
        contents = [shard.read(*place[i : i + 2], where) for i in (2, 4, 6)]
        found = parse_sample(contents, where).regions
        labels = {name: values for name in LABELS if (values := getattr(found, name)) is not None}
        return Record(found.features, found.boxes, found.image_size, labels)

    def entries(self) -> Iterator[SourceImage] | None:
        return iter(self._entries) if self.captions == self.root else None


def _listed(folder: Path) -> dict[str, str] | None:
    """File name -> sha256 as in the index; None without an index."""
    if not (folder / INDEX).is_file():
        return None
    try:
        return listed_files(folder)
    except InputError as error:
        fix = "restore it, or move it away to import the shards as they are"
        raise InputError(error.what, where=error.where, fix=fix) from error


def _names(value: Any, key: str, path: Path) -> list[str] | None:
    names = value.get(key) if isinstance(value, dict) else 0
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{key!r} must be a list of names", where=path, fix=FIX)
    return names


def _order(path: Path) -> tuple[int, int, str]:
    found = _NAME.fullmatch(path.name)
    return (SPLITS.index(found[1]), int(found[2]), path.name) if found else (len(SPLITS), 0, path.name)
