"""The `manifest` stage: reads a captions file, checks it against the pictures and writes the data set's manifest.

It is the only stage that reads the raw image folder's names and bytes as a whole: everything later depends on the
manifest. All mistakes of a data set are one error here, before hours are spent on it, or left out and listed.
"""

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from glob import escape
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from PIL import Image

from manifests import readers
from manifests.boxes import checked, with_boxes
from manifests.columns import SPLIT_OF
from manifests.errors import InputError
from manifests.files import sha256, whole_folder
from manifests.grounding import FILE as GROUNDING
from manifests.grounding import Grounding, Phrase, box_problem, phrase_problem, write_grounding
from manifests.imported import write_source
from manifests.left_out import Sieve
from manifests.locks import one_writer
from manifests.names import id_problem
from manifests.opening import in_threads, open_file
from manifests.picture_files import open_picture
from manifests.progress import progress
from manifests.schema import SPLITS, CaptionedImage
from manifests.source import LeftOut, SourceCaption, SourceImage
from manifests.tables import write_manifest

Facts = tuple[str, int | None, int | None]
"""An image's sha256, upright width and upright height."""
LONGEST_CAPTION = 2**16
"""Characters: what is longer is no caption."""
_ORIENTATION = 0x0112  # EXIF tag; values 5 to 8 turn the picture on its side
_LATIN_WORD = re.compile(r"[A-Za-z0-9]")

log = logging.getLogger(__name__)


@one_writer("manifest")
def run(
    *,
    images: Path,
    captions: Path,
    format: str,
    boxes: Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    duplicates: Literal["refuse", "allow"] = "refuse",
    missing: Literal["refuse", "skip"] = "refuse",
    unreadable: Literal["refuse", "skip"] = "refuse",
    out: Path,
) -> None:
    """Write the folder `out`, whole or not at all.

    It has images.arrow and captions.arrow, in the source's order. Objects of the source go into grounding.jsonl, and
    left-out rows into left_out.jsonl. By source.json no regions are imported.

    Parameters
    ----------
    images : the image root. Pictures there that the captions file doesn't name are left out.
    captions : the captions file, of the kind that `format` says (`manifests.readers`).
    boxes : a file of given boxes (`manifests.boxes`), or the captions file that has them itself.
    val_fraction, test_fraction : parts of the images, chosen by a hash of their ids, where the file has no splits.
    duplicates : what two files with the same bytes in two splits do; the same path in two splits is always refused.
        Files that are no pictures are no duplicates.
    missing : the rule for pictures that aren't there.
    unreadable : the rule for broken and repeated rows and captions without a word.

    Raises
    ------
    InputError : names file, row and fix of each mistake, and the number of all. Mistakes are a picture that is missing
        or outside the root, an id or path given twice, and an image in two splits, by path or bytes. So are a caption
        without a word, an unknown split, a file that is not UTF-8 or not of its format, and no images.
    """
    images, captions, out = Path(images), Path(captions), Path(out)
    if not images.is_dir():
        raise InputError("the image root is not a folder", where=images, fix="check the path of the images")
    sieve = sieve_of(out, missing, unreadable)
    entries = checked_entries(readers.read(captions, format), captions, sieve, root=images)
    if boxes is not None and not (Path(boxes) == captions and any(entry.objects is not None for entry in entries)):
        entries = with_boxes(entries, Path(boxes), images, sieve)
    groundings = [_grounding(entry, captions) for entry in entries if _is_grounded(entry)]
    entries = present(images, entries, captions, sieve)
    sieve.refuse()
    facts = _pictures(images, entries, captions)
    rows = manifest_rows(entries, captions, facts, val_fraction, test_fraction, sieve, duplicates=duplicates)
    if boxes is not None:
        rows = checked(rows, {item.image_id: item for item in groundings}, boxes)
    with whole_folder(out) as folder:
        write_manifest(folder, rows)
        left_out = {item.id for item in sieve.items if item.kind == "missing"}
        if groundings := [grounding for grounding in groundings if grounding.image_id not in left_out]:
            write_grounding(folder / GROUNDING, groundings)
        write_source(folder, None, None if boxes is None else sha256(folder / GROUNDING))
        finish(folder, sieve)


def sieve_of(out: Path, missing: str, unreadable: str, listing: Path | None = None) -> Sieve:
    """What a manifest in the folder `out` may leave out; everything refused is in `listing`, by default beside it."""
    allowed = {"missing"} if missing == "skip" else set()
    allowed |= {"row", "repeated", "caption"} if unreadable == "skip" else set()
    return Sieve(allowed, listing or out.with_name(f"{out.name}-refused.jsonl"))


def finish(folder: Path, sieve: Sieve) -> None:
    """Refuse what a manifest in `folder` may not leave out, list what it does, and say how much that is."""
    sieve.refuse()
    if sieve.items:
        sieve.write(folder)
        log.warning("manifest: %s", sieve.summary())


def checked_entries(
    items: Iterable[SourceImage | LeftOut], file: Path, sieve: Sieve, *, root: Path | None = None
) -> list[SourceImage]:
    """The entries of the captions file `file` after all checks that need no picture.

    Their ids are given: that of the file, else the file name without its suffix, or where images share that, the path
    without it. Paths are in one spelling, from `root`. Raises `InputError` where no entry is left.
    """
    entries = list(_well_formed(sieve.usable(items), file, sieve, root))
    if root is not None:
        entries = _from_root(root, entries, file)
    found = list(_distinct(_with_ids(entries), file, sieve))
    if not found:
        sieve.refuse()
        summary = sieve.summary()
        raise InputError(
            f"there are no images{f': {summary}' if summary else ''}",
            where=file,
            fix="give a captions file with at least one image",
        )
    return found


def _well_formed(entries: Iterable[SourceImage], file: Path, sieve: Sieve, root: Path | None) -> Iterator[SourceImage]:
    """Entries with a path and a split that can be, and with captions that have a word."""
    first = None
    for entry in entries:
        where = f"{file} {entry.row}"
        first = first or entry
        split = entry.split if entry.split is None else SPLIT_OF.get(entry.split.strip().lower(), entry.split)
        try:
            path = _relative(entry.path, where, root)
            if entry.id is not None:
                _require_id(entry.id, where)
            if split is not None and split not in SPLITS:
                raise InputError(f"unknown split {split!r}", where=where, fix=f"use one of {', '.join(SPLITS)}")
        except InputError as error:
            sieve.add("row", error, entry.id)
            continue
        if (split is None) != (first.split is None):
            problem = f"{first.row} {'has no' if first.split is None else 'has a'} split and this row is otherwise"
            sieve.add("conflict", InputError(problem, where=where, fix="give every image a split, or none"), entry.id)
            continue
        captions = []
        for caption in entry.captions:
            if error := _caption_problem(caption, file):
                sieve.add("caption", error, entry.id or PurePosixPath(path).stem)
            else:
                captions.append(caption)
        yield replace(entry, path=path, split=split, captions=tuple(captions))


def _with_ids(entries: list[SourceImage]) -> Iterator[SourceImage]:
    """Entries with an id each, named by their paths where the file doesn't name them."""
    given = {entry.id for entry in entries if entry.id is not None}
    paths = [PurePosixPath(path) for path in {entry.path for entry in entries if entry.id is None}]
    stems, whole = Counter(path.stem for path in paths), Counter(str(path.with_suffix("")) for path in paths)
    for entry in entries:
        if entry.id is None:
            path = PurePosixPath(entry.path)
            stem, longer = path.stem, str(path.with_suffix(""))
            unique = (
                name for name, counts in ((stem, stems), (longer, whole)) if counts[name] == 1 and name not in given
            )
            entry = replace(entry, id=next(unique, entry.path))
        yield entry


def _distinct(entries: Iterable[SourceImage], file: Path, sieve: Sieve) -> Iterator[SourceImage]:
    """Entries without those whose path or id an earlier one has."""
    ids: dict[str, SourceImage] = {}
    paths: dict[str, SourceImage] = {}
    for entry in entries:
        where = f"{file} {entry.row}"
        try:
            _require_id(entry.id, where)
        except InputError as error:
            sieve.add("row", error, entry.id)
            continue
        for known, key, what, fix in (
            (paths, entry.path, "image", "give each image once, in one split, with all its captions"),
            (ids, entry.id, "id", "give each image its own id, once, in one split"),
        ):
            if other := known.get(key):
                problem = f"{what} {key!r} was already given at {other.row}"
                if other.split != entry.split:
                    problem = f"{what} {key!r} is in split {entry.split!r} here and in {other.split!r} at {other.row}"
                kind = "repeated" if other.split == entry.split else "conflict"
                sieve.add(kind, InputError(problem, where=where, fix=fix), entry.id)
                break
        else:
            ids[entry.id] = paths[entry.path] = entry
            yield entry


def _require_id(id: str, where: str) -> None:
    if not id.strip():
        raise InputError("the id is empty", where=where, fix="give the image an id")
    if problem := id_problem(id):
        raise InputError(problem, where=where, fix="give the image an id, or a file name, of letters and digits")


def _caption_problem(caption: SourceCaption, file: Path) -> InputError | None:
    """Why a caption can't be one."""
    text, where = caption.text, f"{file} {caption.row}"
    if not text.strip():
        return InputError("the caption is empty", where=where, fix="write it or remove it")
    if not has_word(text):
        message = f"the caption {text[:60]!r} has no word: punctuation and white space are none"
        return InputError(message, where=where, fix="write it or remove it")
    if len(text) > LONGEST_CAPTION:
        message = f"the caption has {len(text):,} characters, and may have {LONGEST_CAPTION:,}"
        return InputError(message, where=where, fix="shorten it or remove it")
    try:
        _refuse_broken_text(text, where)
    except InputError as error:
        return error
    return None


def has_word(text: str) -> bool:
    """Whether a text has a character that is neither punctuation nor white space: so much is a word to spaCy."""
    if _LATIN_WORD.search(text):
        return True
    return any(not (character.isspace() or unicodedata.category(character)[0] == "P") for character in text)


def _from_root(root: Path, entries: list[SourceImage], file: Path) -> list[SourceImage]:
    """Entries with paths from the image root on, where the file has them from the folder above.

    Raises InputError where that holds of some pictures alone.
    """
    paths = [PurePosixPath(entry.path) for entry in entries]
    if not entries or len(paths[0].parts) < 2 or os.path.exists(root / paths[0]):
        return entries
    if not os.path.exists(root.joinpath(*paths[0].parts[1:])):
        return entries
    top = paths[0].parts[0]
    other = next((entry for entry, path in zip(entries, paths, strict=True) if path.parts[0] != top), None)
    if other and top == root.absolute().name:
        raise InputError(
            f"the paths begin with {top!r}, the image root's own name, and others don't: {other.path!r} ({other.row})",
            where=file,
            fix=f"give the folder above as `source.images`: {root.parent}",
        )
    below = (PurePosixPath(*path.parts[1:] or path.parts) for path in paths)
    return [replace(entry, path=str(path)) for entry, path in zip(entries, below, strict=True)]


def present(root: Path, entries: list[SourceImage], file: Path, sieve: Sieve) -> list[SourceImage]:
    """Entries whose pictures are there. Raises `InputError` where none is."""

    def absent(entry: SourceImage) -> InputError | None:
        if os.path.exists(root / entry.path):
            return None
        try:
            open_file(root / entry.path).close()
        except (OSError, ValueError) as error:
            return _unopened(root, entry, file, error)
        return None

    kept = []
    for entry, error in in_threads(absent, entries):
        if error:
            sieve.add("missing", error, entry.id)
        else:
            kept.append(entry)
    if not kept:
        error = sieve.items[-1].error
        if len(entries) == 1:
            raise error
        raise InputError(
            f"none of {len(entries):,} pictures is there, such as {entries[0].path!r} ({entries[0].row})",
            where=root,
            fix=_root_advice(root, entries[0].path) or error.fix,
        )
    return kept


def _root_advice(root: Path, path: str) -> str | None:
    """Which image root has the picture, where one near `root` does."""
    if found := nearby_root(root, path):
        return f"set `source.images: {found}`"
    if found := next(root.glob(f"{escape(path)}.*"), None):
        return f"write the paths with their suffix, as in {found.relative_to(root)}"
    name = PurePosixPath(path).name
    found = next((folder for folder in [root, *_near(root)] if os.path.exists(folder / name)), None)
    return found and f"the pictures seem to lie in {found}: write their paths from there"


def nearby_root(root: Path, path: str) -> Path | None:
    """The folder above `root`, or right below it, that has the picture at `path`."""
    return next((folder for folder in _near(root) if os.path.exists(folder / path)), None)


def _near(root: Path) -> list[Path]:
    inner = (folder for folder in sorted(root.glob("*")) if folder.is_dir())
    return [*list(root.absolute().parents)[:2], *inner][:1000]


def _refuse_broken_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"character {error.start} of {text!r} is half of a surrogate pair, not a character"
        raise InputError(problem, where=where, fix="write the text as UTF-8") from None


def _relative(text: str, where: str, root: Path | None) -> str:
    """A path as a manifest holds it. Raises InputError for one that leaves the image root or names no file."""
    fix = "give the path from the image root, with forward slashes and no '..'"
    if not text.strip() or "\0" in text:
        raise InputError(f"the image's path {text!r} names no file", where=where, fix=fix)
    _refuse_broken_text(text, where)
    shown, path = f"the image's path {text!r}".replace("\\\\", "\\"), PurePosixPath(text)
    if "\\" in text:
        path = PurePosixPath(text.replace("\\", "/"))
        if root is None or not _is_near(root, path):
            message = f"{shown} has backslashes" + ("" if root is None else f", and there is no {str(path)!r} either")
            raise InputError(message, where=where, fix=fix)
    if root is not None and path.is_absolute() and path.is_relative_to(root.absolute().as_posix()):
        path = path.relative_to(root.absolute().as_posix())
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{shown} could lead out of the image root", where=where, fix=fix)
    return str(path)


def _is_near(root: Path, path: PurePosixPath) -> bool:
    """Whether a picture is there, from the image root or from the folder above on."""
    return os.path.isfile(root / path) or os.path.isfile(root.joinpath(*path.parts[1:]))


def manifest_rows(
    entries: list[SourceImage],
    file: Path,
    facts: Iterable[Facts | InputError],
    val_fraction: float,
    test_fraction: float,
    sieve: Sieve,
    *,
    duplicates: Literal["refuse", "allow"],
) -> Iterator[CaptionedImage]:
    """One manifest row an entry, in order.

    `facts` are those of each entry of the captions file `file`, or why it has none. Equal sha256 sums of pictures in
    two splits, if those are refused, go into `sieve`.
    """
    seen: dict[str, tuple[SourceImage, str]] = {}
    with progress(what="manifest", unit="images", total=len(entries)) as bar:
        for entry, fact in zip(entries, facts, strict=True):
            bar.update()
            if isinstance(fact, InputError):
                sieve.add("missing", fact, entry.id)
                continue
            digest, width, height = fact
            split = entry.split or hashed_split(entry.id, val_fraction, test_fraction)
            other, other_split = seen.setdefault(digest, (entry, split))
            if duplicates == "refuse" and other_split != split and width is not None:
                error = InputError(
                    f"image {entry.path!r} in split {split!r} has the same bytes as {other.path!r} ({other.row}) "
                    f"in split {other_split!r}: what is tested on must not be trained on",
                    where=f"{file} {entry.row}",
                    fix="remove one of the two, give both the same split, or set `source.duplicates: allow`",
                )
                sieve.add("conflict", error, entry.id)
            texts = tuple(caption.text for caption in entry.captions)
            ids = tuple(caption.coco_id for caption in entry.captions)
            yield CaptionedImage(
                entry.id, entry.path, digest, width, height, split, texts, ids if set(ids) != {None} else ()
            )


def _pictures(root: Path, entries: list[SourceImage], file: Path) -> Iterator[Facts | InputError]:
    """What each entry's picture tells, read in threads."""
    return (found for _, found in in_threads(partial(_picture, root, file), entries))


def _picture(root: Path, file: Path, entry: SourceImage) -> Facts | InputError:
    try:
        with open_file(root / entry.path) as picture:
            digest = hashlib.file_digest(picture, "sha256").hexdigest()
            picture.seek(0)
            return digest, *_upright_size(picture)
    except OSError as error:
        return _unopened(root, entry, file, error)


def _unopened(root: Path, entry: SourceImage, file: Path, error: OSError | ValueError) -> InputError:
    return InputError(
        f"image {entry.path!r} can't be read from {root} ({getattr(error, 'strerror', None) or error})",
        where=f"{file} {entry.row}",
        fix="put the file there, remove the row, or set `source.missing: skip` to leave it out",
    )


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


def hashed_split(id: str, val_fraction: float, test_fraction: float) -> str:
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
            raise InputError(f"an object's labels must be given in texts, not {label!r}", where=where, fix=fix)
        boxes.append(tuple(float(x) for x in item["box"]))
        labels.append(label)
    grounded = any(caption.phrases is not None for caption in entry.captions)
    for caption in entry.captions:
        if not grounded:  # boxes alone
            phrases.append(())
            continue
        if not isinstance(caption.phrases, list):
            raise InputError("'phrases' must be a list", where=f"{file} {caption.row}", fix=fix)
        for index, phrase in enumerate(caption.phrases):
            problem = phrase_problem(phrase, objects=len(boxes), length=len(caption.text))
            if problem:
                raise InputError(problem, where=f"{file} {caption.row}.phrases[{index}]", fix=fix)
        phrases.append(tuple(Phrase(**phrase) for phrase in caption.phrases))
    return Grounding(entry.id, tuple(boxes), tuple(labels), tuple(phrases))
