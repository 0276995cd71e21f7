"""What a manifest of imported regions was made of: `source.json` beside its tables.

The region stage reads it to find each image's regions again without searching through the files. For a data set of
pictures it says that nothing is imported, and names given boxes, so that every region stage may depend on it.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from manifests.files import canonical_json, write_text
from manifests.registry import Registry
from manifests.typed import Count, Written, read_checked

FILE = "source.json"
FORMATS: Registry[Any] = Registry("format", "extract.exchange.formats")
"""The formats of region features that somebody else extracted (docs/exchange.md): `extract.exchange.source.Source`s."""
_AGAIN = "run the manifest stage again"


@dataclass(frozen=True, slots=True)
class Imported:
    """Files with regions, and where in them those of each image are.

    Parameters
    ----------
    format : of the files, a name of `FORMATS`.
    files : name -> sha256 of every file that was read.
    boxes : R where every image has that many regions, else None.
    object_names, attribute_names : what the files' class and attribute numbers mean, where they say so.
    places : for each row of the manifest the numbers by which the format finds its regions.
    """

    format: str
    files: dict[str, str]
    boxes: Count | None
    object_names: list[str] | None
    attribute_names: list[str] | None
    places: list[list[Count]]


class _Written(Written):
    imported: Imported


def write_source(folder: Path, imported: Imported | None, boxes_sha256: str | None = None) -> None:
    """Write `folder`/source.json.

    `imported` is None for a data set of pictures; `boxes_sha256` is of the grounding of one whose boxes are given.
    """
    value = imported and {field.name: getattr(imported, field.name) for field in fields(Imported)}
    boxes = {"boxes_sha256": boxes_sha256} if boxes_sha256 else {}
    write_text(Path(folder) / FILE, canonical_json({"imported": value, **boxes}) + "\n")


def read_source(folder: Path) -> Imported:
    """Read `folder`/source.json. Raises InputError where it is missing, damaged or tells of pictures."""
    return read_checked(Path(folder) / FILE, _Written, fix=_AGAIN)[0].imported
