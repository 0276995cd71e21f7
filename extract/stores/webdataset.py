"""WebDataset shards: plain tar files of samples, three members an image, that need nothing of ours to be read.

| member              | holds                                                                          |
|---------------------|--------------------------------------------------------------------------------|
| `KEY.features.npy`  | f16 (f32 where the store has it) [R, D], region features                       |
| `KEY.boxes.npy`     | f32 [R, 4], absolute (x1, y1, x2, y2) in pixels of the upright picture         |
| `KEY.json`          | id, split, width, height, captions, tokens (a caption's words), num_boxes, and |
|                     | objects_id, objects_conf, attrs_id, attrs_conf [R] where the detector has them |

KEY is the image id. WebDataset ends a key at its first dot and reads a slash as a folder, so `%`, `.`, `/`, `\\` and
control characters are written as in a URL ("a.b" -> "a%2Eb"); the JSON's id is always the true one. Equal samples give
equal bytes: no times, no owners, no pickles.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO

import numpy as np

from extract.stores.regions import Regions
from manifests.errors import InputError
from manifests.files import canonical_json

FORMAT = "selfalign-webdataset"
SCHEMA = 1
MEMBERS = ("features.npy", "boxes.npy", "json")
_DETECTED = {"objects_id": np.int32, "objects_conf": np.float32, "attrs_id": np.int32, "attrs_conf": np.float32}
_ESCAPED = re.compile(r"[%./\\\x00-\x1f\x7f]")


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
    """Append the three members of one image; what the JSON says of sizes and labels is taken from the regions."""
    found = sample.regions
    width, height = (int(side) for side in found.image_size)
    facts = {**sample.facts, "width": width, "height": height, "num_boxes": len(found.boxes)}
    facts |= {name: values.tolist() for name in _DETECTED if (values := getattr(found, name)) is not None}
    contents = (_npy(found.features), _npy(found.boxes), canonical_json(facts).encode("utf-8"))
    for name, content in zip(MEMBERS, contents, strict=True):
        member = tarfile.TarInfo(f"{sample_key(sample.id)}.{name}")  # mtime, uid, gid 0, no names, mode 0o644
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))


def read_samples(stream: BinaryIO, where: object) -> Iterator[Sample]:
    """The samples of one shard, read from its first byte to its last.

    Raises `InputError` with `where`, the sample's number and the member for anything that isn't as it was written.
    """
    number = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as shard:
            members = ((member.name, shard.extractfile(member).read()) for member in shard)
            for first in members:
                yield _sample([first, *islice(members, len(MEMBERS) - 1)])
                number += 1
    except InputError:
        raise
    except (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, AttributeError) as error:
        raise InputError(
            f"not a shard of region features ({error})",
            where=f"{where} sample {number}",
            fix="fetch the shard again, or pack the data set again",
        ) from error


def _sample(group: list[tuple[str, bytes]]) -> Sample:
    """The sample of the members (name, content) of one key."""
    names = [name for name, _ in group]
    key = names[0].partition(".")[0]
    if names != [f"{key}.{kind}" for kind in MEMBERS]:
        raise ValueError(f"{', '.join(names)} where {key}.{{{','.join(MEMBERS)}}} were expected")
    contents = dict(zip(MEMBERS, (content for _, content in group), strict=True))
    facts = json.loads(contents["json"])
    features, boxes = (_array(contents[f"{name}.npy"]) for name in ("features", "boxes"))
    if features.dtype not in (np.float16, np.float32) or boxes.dtype != np.float32 or boxes.shape != (len(features), 4):
        raise ValueError(f"features {features.dtype} {features.shape}, boxes {boxes.dtype} {boxes.shape}")
    if facts["num_boxes"] != len(boxes) or sample_key(facts["id"]) != key:
        raise ValueError(f"{names[-1]} doesn't belong to its arrays")
    labels = {name: np.array(facts[name], dtype) for name, dtype in _DETECTED.items() if name in facts}
    return Sample(Regions(features, boxes, (facts["width"], facts["height"]), **labels), facts)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _array(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
