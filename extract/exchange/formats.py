"""The readers of all exchange formats by name."""

from pathlib import Path

from extract.exchange.bua_npz import BuaSource
from extract.exchange.butd_tsv import ButdSource
from extract.exchange.lxmert_tsv import LxmertSource
from extract.exchange.scan import ScanSource
from extract.exchange.source import Source
from extract.exchange.vinvl import VinvlSource
from extract.exchange.wds import WdsSource
from manifests.errors import InputError

_SOURCES: dict[str, type[Source]] = {
    source.format: source for source in (ScanSource, ButdSource, LxmertSource, VinvlSource, BuaSource, WdsSource)
}


def open_source(format: str, root: Path, captions: Path | None = None, *, info: bool = False) -> Source:
    """Open files of a format (`manifests.settings.IMPORTED`). Raises InputError where they aren't there."""
    if not Path(root).exists():
        raise InputError("there is no such file or folder", where=root, fix="check `images`, the path of the regions")
    if info:
        if format != BuaSource.format:
            raise InputError("only bua-npz has a pickled info", where=f"format {format}", fix="leave out `info`")
        return BuaSource(root, captions, info=True)
    return _SOURCES[format](root, captions)
