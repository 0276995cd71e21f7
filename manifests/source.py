"""What a reader of captions files yields: images as the file tells of them, each with its place for error messages."""

from dataclasses import dataclass
from typing import Any

from manifests.errors import InputError


@dataclass(frozen=True, slots=True)
class SourceCaption:
    """A caption and where it stands in the captions file ("line 17", "images[17].sentences[2]").

    `phrases` is the JSON list of the words whose object is known, `coco_id` the caption's id in COCO; None where the
    file doesn't say.
    """

    row: str
    text: str
    phrases: Any = None
    coco_id: int | None = None


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image as the captions file gives it, not yet checked against the image root.

    Parameters
    ----------
    row : where it stands in the captions file.
    id : the file's id of it; None where it is named by its path alone.
    path : as written in the file.
    split : as written in the file, with "restval" taken as "train"; None where the file has no splits.
    captions : its captions in the file's order.
    objects : the JSON list of its objects where the file tells them, else None.
    imgid : its number in Karpathy's file, by which some feature files are keyed.
    """

    row: str
    id: str | None
    path: str
    split: str | None
    captions: tuple[SourceCaption, ...]
    objects: Any = None
    imgid: int | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row, a caption or a picture that can't be taken.

    kind : "row" (broken), "repeated", "caption" (empty or without a word), "missing" (a picture, or regions), or
        "conflict" (what no setting leaves out).
    id : of the image, where it is known.
    """

    kind: str
    error: InputError
    id: str | None = None
