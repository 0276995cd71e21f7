"""`selfalign export`: a region store and its manifest in a layout that other people's code reads.

The folder appears whole or not at all. A killed export is begun anew, since checking its files would take as long as
writing them. Formats without captions of their own get `captions.json` beside them, in Karpathy's layout. Images of
the manifest that the store lacks are left out, and counted. `made.jsonl` has the store's origin.
"""

import logging
from pathlib import Path

from extract.exchange import karpathy
from extract.settings import PackSettings
from extract.stages import pack
from extract.stores.intact import require_intact
from extract.stores.made import embed_made
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.files import whole_folder
from manifests.imported import FORMATS
from manifests.locks import one_writer
from manifests.progress import progress
from manifests.tables import Manifest

CAPTIONS = "captions.json"

log = logging.getLogger(__name__)


def exported() -> list[str]:
    """The formats that a store can be written in."""
    return [*(name for name, kind in FORMATS.load().items() if kind.write), "wds", "karpathy"]


def run(
    *,
    format: str,
    dataset: str,
    manifest: Path,
    regions: Path,
    tokens: Path,
    out: Path,
    drop_captions: bool = False,
) -> None:
    """Write the images of a data set to the new folder `out`.

    Parameters
    ----------
    format : one of `exported()`; karpathy is the captions alone, and needs no regions.
    dataset : its name, which wds and karpathy carry.
    tokens : the token store, which wds alone needs.
    drop_captions : scan alone: leave out an image's captions after the fifth instead of refusing it.

    Raises InputError where `out` exists, a store's file has changed, or the format can't hold the data: the message
    then names formats that can.
    """
    if format != "wds":
        _run(format=format, dataset=dataset, manifest=manifest, regions=regions, out=out, drop_captions=drop_captions)
    else:
        _require_new(out)
        if not Path(tokens).exists():
            raise InputError(
                "wds carries the words of each caption, and there is no token store",
                where=tokens,
                fix="make a data set of params.yaml of it (docs/exchange.md) and run its tokens stage, or export scan",
            )
        stores = {"manifest": manifest, "regions": regions, "tokens": tokens}
        pack.run(dataset=dataset, **stores, settings=PackSettings(), out=out, note=False)


def _require_new(out: Path) -> None:
    if Path(out).exists():
        raise InputError("it is there already", where=out, fix="name a new folder, or remove this one")


@one_writer("export")
def _run(*, format: str, dataset: str, manifest: Path, regions: Path, out: Path, drop_captions: bool) -> None:
    _require_new(out)
    rows = Manifest.open(manifest).captioned
    if format == "karpathy":
        with whole_folder(out) as folder:
            karpathy.write(folder / f"dataset_{dataset}.json", dataset, rows)
        return
    writer = FORMATS.find(format)
    if writer.write is None:
        raise InputError(
            "this format is only read", where=f"format {format}", fix=f"choose one of {', '.join(exported())}"
        )
    store = RegionStore(regions)
    for folder in store.folders:
        require_intact(folder)
    kept = [row for row in rows if row.id in store]
    if not kept:
        raise InputError(f"it has none of the images of {manifest}", where=regions, fix="give its own manifest")
    if len(kept) < len(rows):
        log.warning("%d of %d images have no regions and are left out", len(rows) - len(kept), len(rows))
    if format != "scan" and not store.has_boxes:
        raise InputError("it has no boxes, and this format is made of them", where=regions, fix="export scan")
    with whole_folder(out) as folder, progress(what=f"export {format}", unit="images", total=len(kept)) as bar:
        if format == "scan":
            writer.write(folder, kept, store, drop_captions=drop_captions, advance=bar.update)
        else:
            writer.write(folder, kept, store, advance=bar.update)
            karpathy.write(folder / CAPTIONS, dataset, kept)
        embed_made([regions], folder)
