"""The project's own WebDataset shards, as the pack stage writes them (`extract.stores.webdataset` has the layout).

Members are read where they lie and never unpacked to disk; one whose name could lead out of a folder, a link or a
device is refused all the same.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from extract.exchange import npy
from extract.exchange.source import LABELS, Bytes, Found, Record, Source, files_in, hashed
from extract.stores.webdataset import MEMBERS
from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.schema import SPLITS
from manifests.source import SourceCaption, SourceImage

_FIX = "fetch or pack the shards again: they may have been cut off"
_NAME = re.compile(r".*-(train|val|test)-(\d+)\.tar")


class WdsSource(Source):
    """Reads one shard or all `*.tar` of a folder, train before val before test.

    A place is the shard's number, then offset and length of each member: features, boxes, json.
    """

    format = "wds"

    def __init__(self, root: Path, captions: Path | None = None):
        super().__init__(root, captions)
        self.paths = sorted(files_in(root, "*.tar"), key=_order)
        self._shards = [Bytes(path, _FIX) for path in self.paths]
        self._entries: list[SourceImage] = []

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found]:
        names = self.root / "classes.json"
        if names.is_file():
            value = parse_json(read_utf8(names), path=names, fix=_FIX)
            self.object_names, self.attribute_names = (_names(value, key, names) for key in ("objects", "attributes"))
        for number, shard in enumerate(self._shards):
            for row, (key, places) in enumerate(_samples(shard)):
                where = f"{shard.path} row {row}"
                facts = _facts(shard.read(*places[2], where), where)
                if facts["id"] != unquote(key):
                    raise InputError(f"its key is {key!r}, its id {facts['id']!r}", where=where, fix=_FIX)
                captions = [SourceCaption(f"{shard.path.name} row {row}", caption) for caption in facts["captions"]]
                place = (number, *(x for place in places for x in place))
                self._entries.append(
                    SourceImage(f"{shard.path.name} row {row}", facts["id"], key, facts["split"], tuple(captions))
                )
                size = (facts["width"], facts["height"])
                yield Found(facts["id"], where, place, facts["num_boxes"], size)
            self.files[shard.path.name] = hashed(shard.path, advance)

    def where(self, place: list[int]) -> str:
        return f"{self._shards[place[0]].path} byte {place[1]}"

    def read(self, place: list[int]) -> Record:
        shard, where = self._shards[place[0]], self.where(place)
        parts = [shard.read(*place[i : i + 2], where) for i in (1, 3, 5)]
        features, boxes = (npy.parse(data, where, fix=_FIX) for data in parts[:2])
        facts = _facts(parts[2], where)
        rows = facts["num_boxes"]
        if features.ndim != 2 or len(features) != rows or boxes.shape != (rows, 4):
            raise InputError(
                f"num_boxes is {rows}, features are {list(features.shape)}, boxes {list(boxes.shape)}",
                where=where,
                fix=_FIX,
            )
        labels = {name: np.array(facts[name], None if rows else int) for name in LABELS if name in facts}
        return Record(features, boxes, (facts["width"], facts["height"]), labels)

    def entries(self) -> Iterator[SourceImage] | None:
        return iter(self._entries) if self.captions == self.root else None


def _samples(shard: Bytes) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Key and places (offset, length) of the three members of each sample, which must follow each other."""
    key, places = "", {}
    try:
        with tarfile.open(shard.path, "r:") as tar:
            for member in tar:
                where = f"{shard.path} member {member.name!r}"
                if not member.isfile() or "/" in member.name or "\\" in member.name or member.name.startswith("."):
                    raise InputError(
                        "its name leads out of the archive" if ".." in member.name else "not a plain file of a sample",
                        where=where,
                        fix="don't trust this archive: no packing stage writes such a member",
                    )
                own, _, name = member.name.partition(".")
                if name not in MEMBERS or name in places or (places and own != key):
                    raise InputError(
                        f"a sample is {', '.join(MEMBERS)} under one key, one after the other", where=where, fix=_FIX
                    )
                key, places[name] = own, (member.offset_data, member.size)
                if len(places) == len(MEMBERS):
                    yield key, [places[name] for name in MEMBERS]
                    places = {}
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"not a whole tar file ({error})", where=shard.path, fix=_FIX) from None
    if places:
        raise InputError(f"its last sample has only {', '.join(places)}", where=f"{shard.path} key {key!r}", fix=_FIX)


def _facts(text: bytes, where: str) -> dict[str, Any]:
    """A sample's JSON, its types checked."""
    try:
        value = json.loads(text)
        kinds = {"id": str, "split": str, "width": int, "height": int, "captions": list, "num_boxes": int}
        for name, kind in kinds.items():
            if type(value[name]) is not kind:
                raise ValueError(f"{name} is {value[name]!r}")
        if not all(isinstance(caption, str) for caption in value["captions"]):
            raise ValueError("a caption is not text")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"not a sample's JSON ({error})", where=where, fix=_FIX) from None
    return value


def _names(value: Any, key: str, path: Path) -> list[str] | None:
    names = value.get(key) if isinstance(value, dict) else 0
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{key!r} must be a list of names", where=path, fix=_FIX)
    return names


def _order(path: Path) -> tuple[int, int, str]:
    found = _NAME.fullmatch(path.name)
    return (SPLITS.index(found[1]), int(found[2]), path.name) if found else (len(SPLITS), 0, path.name)
