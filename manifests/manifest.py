"""The `manifest` stage: reads a captions file, checks it against the pictures and writes the data set's manifest.

It is the only stage that reads the raw image folder's names and bytes as a whole: everything later depends on the
manifest. Every mistake of a data set is refused here, with its row and what to do, before hours are spent on it.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from PIL import Image

from manifests import folder, karpathy
from manifests.errors import InputError
from manifests.files import whole_folder
from manifests.grounding import Grounding, Phrase, box_problem, phrase_problem, write_grounding
from manifests.imported import write_source
from manifests.locks import one_writer
from manifests.names import id_problem
from manifests.opening import open_file
from manifests.picture_files import open_picture
from manifests.progress import progress
from manifests.schema import SPLITS, CaptionedImage
from manifests.source import SourceImage
from manifests.tables import write_manifest

_READERS = {"karpathy": karpathy.read, "folder": folder.read}
Facts = tuple[str, int | None, int | None]
"""An image's sha256, upright width and upright height."""
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 turn the picture on its side


@one_writer("manifest")
def run(
    *,
    images: Path,
    captions: Path,
    format: Literal["karpathy", "folder"],
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    duplicates: Literal["refuse", "allow"] = "refuse",
    out: Path,
) -> None:
    """Write the folder `out`, whole or not at all: images.arrow and captions.arrow, in the source's order;
    grounding.jsonl where the source tells objects; source.json, which says that no regions are imported.

    Parameters
    ----------
    images : the image root. Pictures there that the captions file doesn't name are left out.
    captions : the captions file, of the kind that `format` says.
    val_fraction, test_fraction : parts of the images, chosen by a hash of their ids, where the file has no splits.
    duplicates : what two files with the same bytes in two splits do; the same path in two splits is always refused.

    Raises
    ------
    InputError : names the file, the row and the fix: a picture that is missing or outside the root, an id or path
        given twice, an image (by path or by bytes) in two splits, an empty caption, an unknown split, a file that is
        not UTF-8 or not of its format, no images.
    """
    images, captions, out = Path(images), Path(captions), Path(out)
    if not images.is_dir():
        raise InputError("the image root is not a folder", where=images, fix="check the path of the images")
    entries = checked_entries(_READERS[format](captions), captions)
    groundings = [_grounding(entry, captions) for entry in entries if _is_grounded(entry)]
    facts = _pictures(images, entries, captions)
    rows = manifest_rows(entries, captions, facts, val_fraction, test_fraction, duplicates=duplicates)
    with whole_folder(out) as folder:
        write_manifest(folder, rows)
        if groundings:
            write_grounding(folder / "grounding.jsonl", groundings)
        write_source(folder, None)


def checked_entries(entries: Iterable[SourceImage], file: Path) -> list[SourceImage]:
    """The entries of the captions file `file`, their paths in one spelling, after all checks that need no picture.

    Raises InputError, as `run` says.
    """
    found = list(_checked(entries, file))
    if not found:
        raise InputError("there are no images", where=file, fix="give a captions file with at least one image")
    return found


def _checked(entries: Iterable[SourceImage], file: Path) -> Iterator[SourceImage]:
    ids: dict[str, SourceImage] = {}
    paths: dict[str, SourceImage] = {}
    first = None
    for entry in entries:
        where = f"{file} {entry.row}"
        first = first or entry
        path = _relative(entry.path, where)
        if not entry.id.strip():
            raise InputError("the id is empty", where=where, fix="give the image an id")
        if problem := id_problem(entry.id):
            raise InputError(problem, where=where, fix="give the image an id, or a file name, of letters and digits")
        if (entry.split is None) != (first.split is None):
            problem = f"{first.row} {'has no' if first.split is None else 'has a'} split and this row is otherwise"
            raise InputError(problem, where=where, fix="give every image a split, or none")
        if entry.split is not None and entry.split not in SPLITS:
            raise InputError(f"unknown split {entry.split!r}", where=where, fix=f"use one of {', '.join(SPLITS)}")
        if path in paths:
            other = paths[path]
            problem = f"image {path!r} was already given at {other.row}"
            if other.split != entry.split:
                problem = f"image {path!r} is in split {entry.split!r} here and in {other.split!r} at {other.row}"
            raise InputError(problem, where=where, fix="give each image once, in one split, with all its captions")
        if entry.id in ids:
            other = ids[entry.id]
            problem = f"id {entry.id!r} was already given at {other.row}"
            if other.split != entry.split:
                problem = f"id {entry.id!r} is in split {entry.split!r} here and in {other.split!r} at {other.row}"
            raise InputError(problem, where=where, fix="give each image its own id, once, in one split")
        for caption in entry.captions:
            if not caption.text.strip():
                raise InputError("the caption is empty", where=f"{file} {caption.row}", fix="write it or remove it")
            _refuse_broken_text(caption.text, f"{file} {caption.row}")
        entry = replace(entry, path=path)
        ids[entry.id] = paths[path] = entry
        yield entry


def _refuse_broken_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"character {error.start} of {text!r} is half of a surrogate pair, not a character"
        raise InputError(problem, where=where, fix="write the text as UTF-8") from None


def _relative(text: str, where: str) -> str:
    """A path as a manifest holds it. Raises InputError for one that leaves the image root or names no file."""
    fix = "give the path from the image root, with forward slashes and no '..'"
    if not text.strip() or "\0" in text:
        raise InputError(f"the image's path {text!r} names no file", where=where, fix=fix)
    _refuse_broken_text(text, where)
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\\" in text:
        raise InputError(f"the image's path {text!r} could lead out of the image root", where=where, fix=fix)
    return str(path)


def manifest_rows(
    entries: list[SourceImage],
    file: Path,
    facts: Iterable[Facts],
    val_fraction: float,
    test_fraction: float,
    *,
    duplicates: Literal["refuse", "allow"],
) -> Iterator[CaptionedImage]:
    """One manifest row an entry, in order.

    `facts` are those of each entry of the captions file `file`. Raises InputError for equal sha256 sums in two splits,
    if those are refused.
    """
    seen: dict[str, tuple[SourceImage, str]] = {}
    with progress(what="manifest", unit="images", total=len(entries)) as bar:
        for entry, (digest, width, height) in zip(entries, facts, strict=True):
            split = entry.split or _hashed_split(entry.id, val_fraction, test_fraction)
            other, other_split = seen.setdefault(digest, (entry, split))
            if duplicates == "refuse" and other_split != split:
                raise InputError(
                    f"image {entry.path!r} in split {split!r} has the same bytes as {other.path!r} ({other.row}) "
                    f"in split {other_split!r}: what is tested on must not be trained on",
                    where=f"{file} {entry.row}",
                    fix="remove one of the two, give both the same split, or set `source.duplicates: allow`",
                )
            texts = tuple(caption.text for caption in entry.captions)
            ids = tuple(caption.coco_id for caption in entry.captions)
            yield CaptionedImage(
                entry.id, entry.path, digest, width, height, split, texts, ids if set(ids) != {None} else ()
            )
            bar.update()


def _pictures(root: Path, entries: list[SourceImage], file: Path) -> Iterator[Facts]:
    """What each entry's picture tells, read in threads."""
    pending = iter(entries)
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        while batch := list(islice(pending, 1024)):
            yield from pool.map(partial(_picture, root), batch, [f"{file} {entry.row}" for entry in batch])


def _picture(root: Path, entry: SourceImage, where: str) -> Facts:
    try:
        with open_file(root / entry.path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            return digest, *_upright_size(file)
    except OSError as error:
        raise InputError(
            f"image {entry.path!r} can't be read from {root} ({error.strerror})",
            where=where,
            fix="put the file there, or remove the row",
        ) from error


def _upright_size(file: BinaryIO) -> tuple[int | None, int | None]:
    """Width and height in pixels from a picture's header, after EXIF orientation; None where it can't be read."""
    try:
        with open_picture(file) as image:
            width, height = image.size
            # Pillow turns a TIFF's size by itself. The plain method: PNG's own would decode the whole picture.
            turned = image.format != "TIFF" and Image.Image.getexif(image).get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:
        return None, None
    if width < 1 or height < 1:
        return None, None
    return (height, width) if turned else (width, height)


def _hashed_split(id: str, val_fraction: float, test_fraction: float) -> str:
    """The split of an image by a hash of its id alone: adding images moves no other one."""
    place = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "test" if place < test_fraction else "val" if place < test_fraction + val_fraction else "train"


def _is_grounded(entry: SourceImage) -> bool:
    return entry.objects is not None or any(caption.phrases is not None for caption in entry.captions)


def _grounding(entry: SourceImage, file: Path) -> Grounding:
    """The grounding of an entry that has objects. Raises InputError naming the object or phrase."""
    fix = "give objects as {box: [x1, y1, x2, y2], ...} and each sentence's phrases as {start, end, object, kind}"
    if not isinstance(entry.objects, list):
        raise InputError("'objects' must be a list", where=f"{file} {entry.row}", fix=fix)
    boxes, labels, phrases = [], [], []
    for index, item in enumerate(entry.objects):
        where = f"{file} {entry.row}.objects[{index}]"
        if not isinstance(item, dict) or "box" not in item:
            raise InputError(f"an object must have a 'box', and this is {item!r}", where=where, fix=fix)
        problem = box_problem(item["box"])
        if problem:
            raise InputError(f"'box' {problem}", where=where, fix=fix)
        label = {key: value for key, value in item.items() if key != "box"}
        if not all(isinstance(value, str) for value in label.values()):
            raise InputError(f"what an object is must be told in texts, not {label!r}", where=where, fix=fix)
        boxes.append(tuple(float(x) for x in item["box"]))
        labels.append(label)
    for caption in entry.captions:
        if not isinstance(caption.phrases, list):
            raise InputError("'phrases' must be a list", where=f"{file} {caption.row}", fix=fix)
        for index, phrase in enumerate(caption.phrases):
            problem = phrase_problem(phrase, objects=len(boxes), length=len(caption.text))
            if problem:
                raise InputError(problem, where=f"{file} {caption.row}.phrases[{index}]", fix=fix)
        phrases.append(tuple(Phrase(**phrase) for phrase in caption.phrases))
    return Grounding(entry.id, tuple(boxes), tuple(labels), tuple(phrases))
