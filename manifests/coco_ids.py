"""COCO's own ids of the captions of a manifest, for benchmarks that name captions by them: one JSON row an image."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from manifests.errors import InputError
from manifests.files import write_text
from manifests.jsonl import read_rows

COCO_IDS = "coco_ids.jsonl"


def write_coco_ids(path: Path, captions: Mapping[str, Sequence[int]]) -> None:
    """Write image id -> COCO's ids of its captions, both in the manifest's order, atomically."""
    rows = [{"caption_ids": list(own), "image_id": image} for image, own in captions.items()]
    write_text(path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def read_coco_ids(path: Path) -> dict[str, list[int]]:
    """Image id -> COCO's ids of its captions. Raises InputError that names the file, the line and what to do."""
    fix = "run the manifest stage again"
    found = {}
    for number, row in read_rows(path, fix=fix):
        ids = row.get("caption_ids")
        if (
            not isinstance(row.get("image_id"), str)
            or not isinstance(ids, list)
            or any(type(x) is not int for x in ids)
        ):
            raise InputError(
                "a row must have an 'image_id' and a list of whole numbers 'caption_ids'",
                where=f"{path} line {number}",
                fix=fix,
            )
        found[row["image_id"]] = ids
    return found
