"""COCO's own ids of the captions of an older project's manifest: one JSON row an image (today: `manifests.tables`)."""

from pathlib import Path

from manifests.errors import InputError
from manifests.jsonl import read_rows
from manifests.names import is_caption_id

COCO_IDS = "coco_ids.jsonl"


def read_coco_ids(path: Path) -> dict[str, list[int]]:
    """Image id -> COCO's ids of its captions. Raises InputError that names the file, the line and what to do."""
    fix = "run the manifest stage again"
    found = {}
    for number, row in read_rows(path, fix=fix):
        ids = row.get("caption_ids")
        if not isinstance(row.get("image_id"), str) or not isinstance(ids, list) or not all(map(is_caption_id, ids)):
            raise InputError(
                "a row must have an 'image_id' and a list of whole numbers 'caption_ids'",
                where=f"{path} line {number}",
                fix=fix,
            )
        found[row["image_id"]] = ids
    return found
