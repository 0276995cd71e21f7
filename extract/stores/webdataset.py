"""WebDataset shards: plain tar files of samples, three members an image, that need nothing of ours to be read.

| member              | holds                                                                          |
|---------------------|--------------------------------------------------------------------------------|
| `KEY.features.npy`  | f16 (f32 where the store has it) [R, D], region features                       |
| `KEY.boxes.npy`     | f32 [R, 4], absolute (x1, y1, x2, y2) in pixels of the upright picture         |
| `KEY.json`          | id, split, width, height, captions, tokens (a caption's words), num_boxes, and |
|                     | objects_id, objects_conf, attrs_id, attrs_conf [R] where the detector has them |

KEY is the image id. WebDataset ends a key at its first dot and reads a slash as a folder. So `%`, `.`, `/`, `\\` and
control characters are written as in a URL: "a.b" becomes "a%2Eb". The JSON's id is always the true one. Equal samples
give equal bytes: no times, no owners, no pickles.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote

import numpy as np
from pydantic import Field

from extract.stores import npy
from extract.stores.fields import LABELS, Regions
from extract.stores.intact import Entry, Index
from extract.stores.regions import About, MeasuredNorms, require_region_recipe
from manifests.errors import InputError
from manifests.files import canonical_json
from manifests.opening import MOST_ROW
from manifests.typed import Count, Written, checked, schema

FORMAT = "selfalign-webdataset"
SCHEMA = 1
MEMBERS = ("features.npy", "boxes.npy", "json")
FIX = "fetch the shard again, or pack the data set again"
# Of a sample's JSON: type and, of numbers, the least value.
_FACTS = {
    **{"id": (str, 0), "split": (str, 0), "width": (int, 1), "height": (int, 1), "captions": (list, 0)},
    "num_boxes": (int, 0),
}
_SHORTEST_END, _LONGEST_END = 2 * tarfile.BLOCKSIZE, 2**20  # bytes of zeros that end an archive, as far as it is read
_ESCAPED = re.compile(r"[%./\\\x00-\x1f\x7f]")


class PackedShard(Entry):
    """A shard that the index lists."""

    file: str = Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.tar$")
    split: Literal["train", "val", "test"]
    count: Count
    captions: Count


class PackIndex(Index):
    """``index.json``, as the pack stage writes it."""

    schema_: schema(SCHEMA) = Field(alias="schema")
    dataset: str = ""
    images: int = Field(ge=1, le=2**40)
    left_out: list[str]
    dim: int = Field(ge=1, le=2**20)
    shards: list[PackedShard] = Field(min_length=1)
    about: About | None = None
    norms: MeasuredNorms | None = None


class _Recipe(Written):
    regions: dict[str, Any]
    tokens: dict[str, Any]


def require_pack_recipe(recipe: Any, where: object) -> None:
    """Raise `InputError` unless a recipe is that of such shards."""
    checked_recipe = checked(recipe, _Recipe, where=where, fix=FIX)
    require_region_recipe(checked_recipe.regions, where)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard: its regions, and the JSON member as it is."""

    regions: Regions
    facts: dict[str, Any]

    @property
    def id(self) -> str:
        return self.facts["id"]


def sample_key(image_id: str) -> str:
    """An image id as WebDataset key; `urllib.parse.unquote` is the way back."""
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", image_id)


def write_sample(shard: tarfile.TarFile, sample: Sample) -> None:
    """Append the three members of one image; sizes and labels in the JSON are those of the regions."""
    found = sample.regions
    width, height = (int(side) for side in found.image_size)
    facts = {**sample.facts, "width": width, "height": height, "num_boxes": len(found.boxes)}
    facts |= {name: values.tolist() for name in LABELS if (values := getattr(found, name)) is not None}
    contents = (_npy(found.features), _npy(found.boxes), canonical_json(facts).encode("utf-8"))
    for name, content in zip(MEMBERS, contents, strict=True):
        member = tarfile.TarInfo(f"{sample_key(sample.id)}.{name}")  # mtime, uid, gid 0, no names, mode 0o644
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))


def read_samples(stream: BinaryIO, where: object) -> Iterator[Sample]:
    """The samples of one shard, a file that can be sought in, from its first byte to its last.

    Raises `InputError` with `where`, the sample's row and the mistake for anything that isn't as it was written.
    """
    for row, (key, places) in enumerate(sample_places(stream, where)):
        contents = []
        for offset, length in places:
            stream.seek(offset)
            contents.append(stream.read(length))
        sample = parse_sample(contents, f"{where} row {row}")
        require_key(key, sample.facts, f"{where} row {row}")
        yield sample


def sample_places(stream: BinaryIO, where: object) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Key of every sample, and offset and length of its `MEMBERS`, which may stand in any order; only headers are read.

    Raises `InputError` for a file that isn't a whole tar file of samples. One without the blocks of zeros that end it
    was cut off, even if between two members.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    row, key, places = 0, "", {}
    try:
        with tarfile.open(fileobj=stream, mode="r:") as shard:
            for member in shard:
                _check_member(member, size, f"{where} member {member.name!r}")
                own, _, name = member.name.partition(".")
                if name not in MEMBERS or name in places or (places and own != key):
                    raise InputError(
                        f"a sample is {', '.join(MEMBERS)} under one key, one after the other, and {own}.{name} isn't",
                        where=f"{where} row {row}",
                        fix=FIX,
                    )
                key, places[name] = own, (member.offset_data, member.size)
                if len(places) == len(MEMBERS):
                    yield key, [places[name] for name in MEMBERS]
                    row, places = row + 1, {}
            end = shard.offset
    except InputError:
        raise
    except Exception as error:  # a damaged header leads tarfile to whatever error
        raise InputError(f"not a whole tar file ({error})", where=f"{where} row {row}", fix=FIX) from None
    if places:
        raise InputError(f"its last sample has only {', '.join(places)}", where=f"{where} key {key!r}", fix=FIX)
    stream.seek(end)
    rest = stream.read(_LONGEST_END)
    if len(rest) < _SHORTEST_END or any(rest):
        raise InputError(
            f"no end of the archive after {row} samples, at byte {end}: it was cut off there, or is damaged",
            where=where,
            fix=FIX,
        )


def _check_member(member: tarfile.TarInfo, size: int, where: str) -> None:
    """Raise `InputError` unless it is a plain file that lies wholly in an archive of `size` bytes."""
    if not member.isfile() or re.search(r"^\.|[/\\]", member.name):
        raise InputError(
            "its name leads out of the archive" if ".." in member.name else "not a plain file of a sample",
            where=where,
            fix="don't trust this archive: no packing stage writes such a member",
        )
    if member.size > MOST_ROW:
        raise InputError(f"{member.size:,} bytes are more than one image takes", where=where, fix=FIX)
    if member.size < 0 or member.offset_data + member.size > size:
        raise InputError(f"the file ends at byte {size}, inside this member", where=where, fix=FIX)


def parse_sample(contents: Sequence[bytes], where: object) -> Sample:
    """The sample of the bytes of its `MEMBERS`. Raises `InputError` where they don't belong together."""
    facts = parse_facts(contents[2], where)
    features, boxes = (npy.parse(contents[i], f"{where} {MEMBERS[i]}", fix=FIX) for i in (0, 1))
    regions = facts["num_boxes"]
    floats = features.dtype in (np.float16, np.float32) and boxes.dtype == np.float32
    if not floats or features.ndim != 2 or len(features) != regions or boxes.shape != (regions, 4):
        raise InputError(
            f"num_boxes is {regions}, features are {features.dtype} {list(features.shape)}, "
            f"boxes {boxes.dtype} {list(boxes.shape)}",
            where=where,
            fix=FIX,
        )
    labels = {name: np.array(facts[name], own.numpy) for name, own in LABELS.items() if name in facts}
    return Sample(Regions(features, boxes, (facts["width"], facts["height"]), **labels), facts)


def parse_facts(text: bytes, where: object) -> dict[str, Any]:
    """A sample's JSON. Raises `InputError` for a missing key or an impossible value."""
    try:
        facts = json.loads(text)
        for name, (kind, least) in _FACTS.items():
            if type(facts[name]) is not kind or (kind is int and facts[name] < least):
                raise ValueError(f"{name} is {facts[name]!r}")
        if not all(isinstance(caption, str) for caption in facts["captions"]):
            raise ValueError("a caption is not text")
        for name, own in LABELS.items():
            values, kinds = facts.get(name, []), (int,) if own.numpy.kind == "i" else (int, float)
            if name in facts and (len(values) != facts["num_boxes"] or not all(type(x) in kinds for x in values)):
                raise ValueError(f"{name} is {values!r:.60}, and num_boxes is {facts['num_boxes']}")
            np.array(values, own.numpy)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        message = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"not a sample's JSON ({message})", where=where, fix=FIX) from None
    return facts


def require_key(key: str, facts: dict[str, Any], where: object) -> None:
    """Raise `InputError` unless these are the facts of the image that `key` stands for."""
    if facts["id"] != unquote(key):
        raise InputError(f"its key is {key!r}, its id {facts['id']!r}", where=where, fix=FIX)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
