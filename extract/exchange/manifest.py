"""The `manifest` stage of an imported data set: captions are matched with the files' images, and both are checked.

It is what reads the files as a whole, as it does pictures. `source.json` has their sha256 and says where each image's
regions lie, so that the region stage needs no search; a row's sha256 is that of both.
"""

import logging
from pathlib import Path, PurePosixPath
from typing import Literal

from extract.exchange import captions as captions_files
from extract.exchange.formats import open_source
from extract.exchange.source import Found, Source
from manifests.errors import InputError
from manifests.files import fingerprint, whole_folder
from manifests.imported import Imported, write_source
from manifests.locks import one_writer
from manifests.manifest import checked_entries, manifest_rows
from manifests.progress import progress
from manifests.source import SourceImage
from manifests.tables import write_manifest

log = logging.getLogger(__name__)


@one_writer("manifest")
def run(
    *,
    images: Path,
    captions: Path,
    format: str,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    missing: Literal["refuse", "skip"] = "refuse",
    boxes: str | None = None,
    sizes: str | None = None,
    info: bool = False,
    out: Path,
) -> None:
    """Write the folder `out`, whole or not at all: images.arrow, captions.arrow and source.json.

    Parameters
    ----------
    format : of the regions, a name of `manifests.settings.IMPORTED`.
    images : file or folder with the regions. Images there that the captions don't name are left out.
    captions : the folder of the format itself where it has captions (scan, wds), or a file of its own
        (`extract.exchange.captions`). An image there is the one of its id, or of its file name without the suffix.
    val_fraction, test_fraction : as in `manifests.manifest.run`.
    missing : what captions of an image do that no file has regions of.
    boxes, sizes, info : what the region stage will be told of the files (`extract.settings.ImportSettings`): what it
        would refuse of that is refused here, and so before hours are spent on hashing.

    Raises
    ------
    InputError : names file, row and fix: a file that is cut off or not of its format, an image given twice, regions
        that are missing, and all that `manifests.manifest.run` refuses.
    """
    source = open_source(format, images, captions, boxes=boxes, sizes=sizes, info=info)
    own = source.entries()
    if own is None and Path(captions) == Path(images):
        raise InputError(
            f"{format} has no captions", where=captions, fix="name a file of captions with `source.captions`"
        )
    told = captions_files.read(captions) if own is None else own
    later = own is not None and source.captions_in_survey
    entries = [] if later else checked_entries(told, captions)
    found: dict[str, Found] = {}
    with progress(what="files", unit="B", total=source.size, scale=True) as bar:
        for item in source.survey(bar.update):
            if item.key in found:
                raise InputError(
                    f"image {item.key!r} was already given at {found[item.key].where}",
                    where=item.where,
                    fix="give the regions of each image once",
                )
            found[item.key] = item
    entries = checked_entries(told, captions) if later else entries
    pairs, left_out = _matched(entries, found, source, captions, missing)
    files = fingerprint(source.files)
    facts = ((fingerprint([files, item.place]), *(item.size or (None, None))) for _, item in pairs)
    kept = [entry for entry, _ in pairs]
    rows = manifest_rows(kept, captions, facts, val_fraction, test_fraction, duplicates="allow")
    counts = {item.boxes for _, item in pairs}
    imported = Imported(
        format=format,
        files=source.files,
        boxes=counts.pop() if len(counts) == 1 else None,
        object_names=source.object_names,
        attribute_names=source.attribute_names,
        places=[list(item.place) for _, item in pairs],
        left_out=left_out,
    )
    with whole_folder(out) as folder:
        write_manifest(folder, rows)
        write_source(folder, imported)
    if left_out:
        log.warning("%d images have captions but no regions and are left out: %s ...", len(left_out), left_out[0])
    if len(pairs) < len(found):
        taken = {item.key for _, item in pairs}
        unasked = next(key for key in found if key not in taken)
        log.warning("%d images have regions but no captions and are left out: %s ...", len(found) - len(pairs), unasked)


def _matched(
    entries: list[SourceImage], found: dict[str, Found], source: Source, captions: Path, missing: str
) -> tuple[list[tuple[SourceImage, Found]], list[str]]:
    """Each entry with its regions, and the ids of those without any."""
    pairs, lacking = [], []
    taken: dict[str, SourceImage] = {}
    for entry in entries:
        key = entry.id if entry.id in found else PurePosixPath(entry.path).stem
        if key in taken:
            raise InputError(
                f"the regions {key!r} are those of image {taken[key].id!r} ({taken[key].row}) already",
                where=f"{captions} {entry.row}",
                fix="give images ids and file names that tell them apart",
            )
        if key in found:
            taken[key] = entry
            pairs.append((entry, found[key]))
        else:
            lacking.append(entry)
    last = next(reversed(found.values()), None)
    if not pairs:
        raise InputError(
            f"no image has regions: the captions name {entries[0].id!r}, "
            + (f"the files {last.key!r}" if last else "and there is none in the files"),
            where=source.root,
            fix="give captions whose ids or file names are those of the files",
        )
    if lacking and missing == "refuse":
        first = lacking[0]
        raise InputError(
            f"the regions end here, perhaps since the file was cut off: there are those of {len(found)} images, and "
            f"the captions name {len(entries)}; {len(lacking)} of these have none, the first is {first.id!r} "
            f"({captions} {first.row})",
            where=last.where,
            fix="fetch or export the file again, if it should be longer; if it is whole, add what it lacks, remove "
            "these images from the captions, or set `source.missing: skip` to leave them out",
        )
    return pairs, [entry.id for entry in lacking]
