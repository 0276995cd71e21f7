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


def open_source(
    format: str,
    root: Path,
    captions: Path | None = None,
    *,
    boxes: str | None = None,
    sizes: str | None = None,
    info: bool = False,
) -> Source:
    """Open files of a format (`manifests.settings.IMPORTED`); nothing but their headers is read.

    `boxes`, `sizes` and `info` are what `extract.settings.ImportSettings` says of them, where it is told. Raises
    InputError where the files aren't there, or where that isn't what the format needs to know.
    """
    if not Path(root).exists():
        raise InputError(
            "there is no such file or folder", where=root, fix="check `source.images`, the path of the regions"
        )
    if info and format != BuaSource.format:
        raise InputError("only bua-npz has a pickled info", where=f"format {format}", fix="leave out `regions.info`")
    if (boxes or sizes) and format != ScanSource.format:
        raise InputError(
            f"{format} has its own convention of boxes and sizes",
            where=f"format {format}",
            fix="leave out `regions.boxes` and `regions.sizes`",
        )
    source = BuaSource(root, captions, info=True) if info else _SOURCES[format](root, captions)
    if isinstance(source, ScanSource) and boxes and not source.has_boxes:
        raise InputError(
            "there are no boxes ({split}_boxes.npy or {split}_ims_bbx.npy)", where=root, fix="leave out `regions.boxes`"
        )
    if isinstance(source, ScanSource) and source.has_boxes and not boxes:
        raise InputError(
            "the layout doesn't say what its boxes mean",
            where=root,
            fix="set `regions.boxes` to xyxy, xywh, relative_xyxy or relative_xywh: ask whoever made them",
        )
    return source
