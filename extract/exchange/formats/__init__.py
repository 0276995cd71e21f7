"""Exchange formats, a file a format, reader and writer together: `manifests.imported.FORMATS` has them by name."""

from pathlib import Path
from typing import Any

from extract.exchange.source import Source
from manifests.errors import InputError
from manifests.imported import FORMATS


def open_source(format: str, root: Path, captions: Path | None = None, **given: Any) -> Source:
    """Open files of a format (`FORMATS`); nothing but their headers is read.

    `given` has the user's options for the format (`extract.settings.ImportSettings`). Raises InputError where the files
    aren't there, an option is missing, or the format has no such option.
    """
    kind = FORMATS.find(format)
    if not Path(root).exists():
        raise InputError(
            "there is no such file or folder", where=root, fix="check `source.images`, the path of the regions"
        )
    given = {key: value for key, value in given.items() if value}
    if others := sorted(given.keys() - kind.options):
        named = " and ".join(f"`regions.{key}`" for key in others)
        raise InputError(
            f"{format} has no {' and no '.join(others)} to choose", where=f"format {format}", fix=f"leave out {named}"
        )
    return kind(root, captions, **given)


def recognise(root: Path) -> str | None:
    """The format of files of region features; None where it is none that is known."""
    found = (
        name for formats in (FORMATS.own, FORMATS.load) for name, kind in formats().items() if kind.recognises(root)
    )
    return next(found, None)
