"""The `manifest` stage of an imported data set: captions are matched with the files' images, and both are checked.

This stage reads the files as a whole, as it does pictures. `source.json` has their sha256 and the place of each image's
regions, so the region stage needs no search. A row's sha256 is that of both.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from extract.exchange.checks import Checks
from extract.exchange.formats import open_source
from extract.exchange.source import Found, Record, Source
from manifests import readers
from manifests.errors import InputError
from manifests.files import fingerprint, whole_folder
from manifests.imported import Imported, write_source
from manifests.left_out import Sieve
from manifests.locks import one_writer
from manifests.manifest import checked_entries, finish, manifest_rows, sieve_of
from manifests.progress import progress
from manifests.readers import READERS, Preview
from manifests.source import LeftOut, SourceImage
from manifests.tables import write_manifest

_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
Name = Callable[[SourceImage], list[str]]

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
    unreadable: Literal["refuse", "skip"] = "refuse",
    precision: str = "float16",
    listing: Path | None = None,
    out: Path,
    **given: Any,
) -> None:
    """Write the folder `out`, whole or not at all: images.arrow, captions.arrow and source.json. Left-out rows are
    listed in left_out.jsonl.

    Parameters
    ----------
    format : of the regions, a name of `manifests.imported.FORMATS`.
    images : file or folder with the regions. Images there that the captions don't name are left out.
    captions : the folder of the format itself if it has captions (scan, wds), or a file of any kind that
        `manifests.readers` knows. An image there is the one of its id, of its file name, or of its number (`_names`).
    val_fraction, test_fraction : as in `manifests.manifest.run`.
    missing : the rule for captions of an image without regions.
    unreadable : the rule for broken and repeated rows and captions without a word.
    precision : of the features in the store.
    listing : the file that lists all mistakes, if they are many; by default beside `out`.
    given : the user's options for the format (`extract.settings.ImportSettings`). Wrong ones are refused here, before
        hours are spent on hashing.

    Raises
    ------
    InputError : names file, row and fix of each mistake, and the number of all. Mistakes are a file that is cut off or
        not of its format, an image given twice, and missing or impossible regions. So are those of
        `manifests.manifest.run`.
    """
    sizes = given.get("sizes") or "wh"
    source = open_source(format, images, captions, **given)
    sieve = sieve_of(Path(out), missing, unreadable, listing)
    own = source.entries()
    if own is None and Path(captions) == Path(images) and not READERS.find("splits").recognises(Preview.at(captions)):
        raise InputError(
            f"{format} has no captions", where=captions, fix="name a file of captions with `source.captions`"
        )
    items = readers.read(captions) if own is None else own
    later = own is not None and source.captions_in_survey
    entries = [] if later else checked_entries(items, captions, sieve)
    sieve.refuse()
    found, lost = _survey(source, Checks(source, sizes, precision), sieve)
    entries = checked_entries(items, captions, sieve) if later else entries
    sieve.refuse()
    pairs = _matched(entries, found, lost, source, captions, sieve)
    files = fingerprint(source.files)
    facts = ((fingerprint([files, item.place]), *(item.size or (None, None))) for _, item in pairs)
    kept = [entry for entry, _ in pairs]
    rows = manifest_rows(kept, captions, facts, val_fraction, test_fraction, sieve, duplicates="allow")
    counts = {item.boxes for _, item in pairs}
    imported = Imported(
        format=format,
        files=source.files,
        boxes=counts.pop() if len(counts) == 1 else None,
        object_names=source.object_names,
        attribute_names=source.attribute_names,
        places=[list(item.place) for _, item in pairs],
    )
    for note in source.notes:
        log.warning("%s", note)
    if len(pairs) < len(found):
        taken = {item.key for _, item in pairs}
        unasked = next(key for key in found if key not in taken)
        log.warning("%d images have regions but no captions and are left out: %s ...", len(found) - len(pairs), unasked)
    with whole_folder(out) as folder:
        write_manifest(folder, rows)
        write_source(folder, imported)
        finish(folder, sieve)


def _survey(source: Source, checks: Checks, sieve: Sieve) -> tuple[dict[str, Found], set[str]]:
    """The files' images by their key, and the keys of those that can't be taken. All regions are looked at."""
    found: dict[str, Found] = {}
    lost: set[str] = set()
    broken = []
    with progress(what="files", unit="B", total=source.size, scale=True) as bar:
        for item in source.survey(bar.update):
            if isinstance(item, Found):
                item = _checked(item, found, checks)
            if isinstance(item, LeftOut):
                sieve.items.append(item)
                lost |= {item.id} if item.id else set()
                broken += [item.error] * (item.kind == "row")
            else:
                found[item.key] = item
    if len(broken) > max(len(found), 1):
        first, rows = broken[0], len(broken) + len(found)
        message = f"{first.what} (and so on: {len(broken):,} of {rows:,} images can't be taken)"
        raise InputError(message, where=first.where, fix=first.fix)
    return found, lost


def _checked(item: Found, found: dict[str, Found], checks: Checks) -> Found | LeftOut:
    """An image without its regions, if they can be imported; else the reason why not."""
    if other := found.get(item.key):
        message = f"image {item.key!r} was already given at {other.where}"
        error = InputError(message, where=item.where, fix="give the regions of each image once")
        return LeftOut("repeated", error, item.key)
    try:
        record = item.load()
        if len(record.features) != item.boxes:
            message = f"{len(record.features)} regions, its num_boxes says {item.boxes}"
            raise InputError(message, where=item.where, fix="fetch the file again")
        checks.require_sound(record, f"{item.where} (image {item.key!r})")
    except InputError as error:
        return LeftOut("row", error, item.key)
    return replace(item, load=_passed)


def _passed() -> Record:
    raise RuntimeError("the survey has passed this image")


def _matched(
    entries: list[SourceImage], found: dict[str, Found], lost: set[str], source: Source, captions: Path, sieve: Sieve
) -> list[tuple[SourceImage, Found]]:
    """Each entry with its regions; those without any are left out, or refused."""
    pairs, lacking = [], []
    taken: dict[str, SourceImage] = {}
    of_entry = _keys_of(entries, list(dict.fromkeys([*found, *lost])), source)
    for entry in entries:
        key = of_entry(entry)
        if key is None:
            lacking.append(entry)
        elif key in taken:
            raise InputError(
                f"the regions {key!r} are those of image {taken[key].id!r} ({taken[key].row}) already",
                where=f"{captions} {entry.row}",
                fix="give images ids and file names that tell them apart",
            )
        else:
            taken[key] = entry
            if key in found:  # else its row is left out already
                pairs.append((entry, found[key]))
    last = next(reversed(found.values()), None)
    if not pairs:
        raise InputError(
            f"no image has regions: the captions name {entries[0].id!r}, "
            + (f"the files {last.key!r}" if last else "and there is none in the files"),
            where=source.root,
            fix="give captions with the ids or file names of the files",
        )
    if lacking and "missing" not in sieve.allowed:
        first = lacking[0]
        raise InputError(
            f"the regions end here, perhaps since the file was cut off: there are those of {len(found)} images, and "
            f"the captions name {len(entries)}; {len(lacking)} of these have none, the first is {first.id!r} "
            f"({captions} {first.row})",
            where=last.where,
            fix="fetch or export the file again, if it should be longer; if it is whole, add what it lacks, remove "
            "these images from the captions, or set `source.missing: skip` to leave them out",
        )
    for entry in lacking:
        error = InputError("no file has its regions", where=f"{captions} {entry.row}", fix="add them")
        sieve.add("missing", error, entry.id)
    return pairs


def _keys_of(entries: list[SourceImage], keys: list[str], source: Source) -> Callable[[SourceImage], str | None]:
    """Which of the files' keys is an image's: by its names, or by its imgid where more images are found so."""
    known = {}
    for form in (_itself, _plain, _number):  # the first one that tells keys apart wins
        forms = Counter(name for key in keys for name in form(key))
        for key in keys:
            known |= {name: key for name in form(key) if forms[name] == 1 and name not in known}

    def by_name(entry: SourceImage) -> str | None:
        return next((known[name] for name in _names(entry) if name in known), None)

    by_imgid = {str(int(key)): key for key in keys if key.isascii() and key.isdigit()}
    named = sum(by_name(entry) is not None for entry in entries)
    numbered = sum(str(entry.imgid) in by_imgid for entry in entries)
    if numbered <= named:
        return by_name
    source.notes.append(
        f"the files' images are named by Karpathy's imgid: {numbered:,} match so, {named:,} by their names"
    )
    return lambda entry: by_imgid.get(str(entry.imgid))


def _itself(key: str) -> Iterator[str]:
    yield key


def _plain(key: str) -> Iterator[str]:
    """A key without a folder and without a picture's suffix."""
    yield from {_SUFFIX.sub("", key), PurePosixPath(key).name, _SUFFIX.sub("", PurePosixPath(key).name)} - {key}


def _number(key: str) -> Iterator[str]:
    """The number that a key is, or that a COCO file's name ends with, marked as one."""
    if digits := re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", _SUFFIX.sub("", PurePosixPath(key).name), re.ASCII):
        yield f"#{digits[1]}"


def _names(entry: SourceImage) -> Iterator[str]:
    """Names that the files may use for an image, the best first."""
    path = PurePosixPath(entry.path)
    yield from (entry.id, path.stem, entry.path, str(path.with_suffix("")), path.name)
    yield from _plain(entry.id)
    for name in (entry.id, path.stem):
        yield from _number(name)
