"""A manifest's rows: an image, and an image with its captions; what is wrong with one; manifests of older projects.

Those have one JSON row an image in `manifest.jsonl`; `manifests.tables` writes and reads today's.
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from manifests.errors import InputError
from manifests.jsonl import read_rows
from manifests.names import id_problem, is_caption_id

SPLITS = ("train", "val", "test")
AGAIN = "run the manifest stage again"


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image of a data set.

    Parameters
    ----------
    id : unique in the manifest; names the image in every later store.
    path : the picture, relative to the image root, with forward slashes.
    sha256 : of the picture's bytes, hex; where regions are imported, of their files' sha256 and its place in them.
    width, height : upright size in pixels (after EXIF orientation). Both are None where the header can't be read, which
        the region stage reports, and where imported files have no sizes.
    split : "train", "val" or "test".
    """

    id: str
    path: str
    sha256: str
    width: int | None
    height: int | None
    split: str


@dataclass(frozen=True, slots=True)
class CaptionedImage(ImageRow):
    """One image with its captions.

    Parameters
    ----------
    captions : in the source's order; may be empty.
    caption_ids : COCO's own id of each, None where the source has none; empty where it has none of any.
    """

    captions: tuple[str, ...]
    caption_ids: tuple[int | None, ...] = ()


_KEYS = tuple(field.name for field in fields(CaptionedImage) if field.name != "caption_ids")


def read_jsonl(path: Path) -> list[CaptionedImage]:
    """Read and check a manifest of an older project. Raises InputError that names the file, the line and what to do."""
    rows: list[CaptionedImage] = []
    seen: dict[str, int] = {}
    for number, value in read_rows(path, fix=AGAIN):
        problem = _keys_problem(value) or row_problem(value)
        if problem is None and value["id"] in seen:
            problem = f"id {value['id']!r} was already given on line {seen[value['id']]}"
        if problem:
            raise InputError(problem, where=f"{path} line {number}", fix=AGAIN)
        seen[value["id"]] = number
        rows.append(CaptionedImage(**{**value, "captions": tuple(value["captions"])}))
    return rows


def _keys_problem(value: dict) -> str | None:
    for key in value:
        if key not in _KEYS:
            return f"unknown key {key!r} (a row has {', '.join(_KEYS)})"
    for key in _KEYS:
        if key not in value:
            return f"key {key!r} is missing"
    if not isinstance(value["captions"], list):
        return f"'captions' must be a list of texts, not {value['captions']!r}"
    return None


def row_problem(value: dict) -> str | None:
    """What is wrong with a row's values, those of `CaptionedImage` or of `ImageRow` alone; None if nothing is."""
    for key in ("id", "path", "sha256", "split"):
        if not isinstance(value[key], str) or not value[key]:
            return f"{key!r} must be text that isn't empty, not {value[key]!r}"
    if problem := id_problem(value["id"]):
        return problem
    if value["path"].startswith("/") or "\\" in value["path"] or ".." in value["path"].split("/"):
        return f"'path' must be relative to the image root, with forward slashes and no '..', not {value['path']!r}"
    if re.search("[\0\ud800-\udfff]", value["path"]):
        return f"'path' {value['path']!r} has a character that no file's name can have"
    if not re.fullmatch("[0-9a-f]{64}", value["sha256"]):
        return f"'sha256' must be 64 hex digits, not {value['sha256']!r}"
    if value["split"] not in SPLITS:
        return f"'split' must be one of {', '.join(SPLITS)}, not {value['split']!r}"
    for key in ("width", "height"):
        if value[key] is not None and (type(value[key]) is not int or not 1 <= value[key] < 2**31):
            return f"{key!r} must be a whole number of pixels above 0, or null, not {value[key]!r}"
    if (value["width"] is None) != (value["height"] is None):
        return "'width' and 'height' must both be known or both be null"
    for id in value.get("caption_ids", ()):
        if id is not None and not is_caption_id(id):
            return f"'caption_ids' must be whole numbers of at most 64 bits, not {id!r}"
    for index, caption in enumerate(value.get("captions", ())):
        if not isinstance(caption, str) or not caption.strip():
            return f"'captions[{index}]' must be text that isn't empty, not {caption!r}"
        if half := re.search("[\ud800-\udfff]", caption):
            return f"'captions[{index}]' has half of a surrogate pair at character {half.start()}, in {caption!r}"
    return None
