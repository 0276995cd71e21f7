"""What a reader of captions files yields: images as the file tells of them, each with its place for error messages."""

from dataclasses import dataclass
from typing import Any


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
    id : the file's id of it, or what stands for it.
    path : as written in the file.
    split : as written in the file, with "restval" taken as "train"; None where the file has no splits.
    captions : its captions in the file's order.
    objects : the JSON list of its objects where the file tells them, else None.
    """

    row: str
    id: str
    path: str
    split: str | None
    captions: tuple[SourceCaption, ...]
    objects: Any = None
