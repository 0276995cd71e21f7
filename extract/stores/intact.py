"""Are the files of a store still the ones that its ``index.json`` lists? Every store lists them with their sha256.

`selfalign verify` reads everything each time. Training and evaluation ask at every start, so the answer is kept in
``.NAME.intact.json`` beside the store. It holds for a file as long as its size and time of change are the same.
"""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from extract.stores.recipe import read_recipe
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.progress import progress
from manifests.schema import SPLITS
from manifests.typed import Count, Digest, Written, read_checked

INDEX = "index.json"
_READERS = 2
# Of this folder, and not hidden.
_NAME = r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$"


class Entry(Written):
    """A file that an index lists."""

    file: str = Field(pattern=_NAME)
    sha256: Digest


class CountedFile(Entry):
    """A file of HDF5, and how many captions or images it has."""

    file: str = Field(pattern=rf"{_NAME[:-1]}\.h5$")
    count: Count


class Index(Written):
    """The keys of every ``index.json``; each kind of store has more."""

    shards: list[Entry]
    files: dict[Annotated[str, Field(pattern=rf"{_NAME[:-1]}(/{_NAME[1:-1]})?$")], Digest] = {}


def listed_files(folder: Path) -> dict[str, str]:
    """File name -> sha256 of all that the index of a store lists. Raises `InputError` if it has no such list."""
    folder = Path(folder)
    path = folder / INDEX
    if not folder.is_dir():
        raise InputError("there is no such store", where=folder, fix=how_to_get(folder))
    try:
        index, _ = read_checked(path, Index, fix=_again(folder))
    except InputError as error:
        message = f"no list of files with their sha256 ({error.what})"
        raise InputError(message, where=path, fix=error.fix) from error
    return {entry.file: entry.sha256 for entry in index.shards} | index.files


def read_index(folder: Path, kind: type[Index], fix: str) -> dict[str, Any]:
    """The contents of a store's ``index.json``. Raises `InputError`, with `fix`, unless they are of type `kind`."""
    path = Path(folder) / INDEX
    try:
        return read_checked(path, kind, fix=fix)[1]
    except InputError as error:
        raise InputError(f"no readable index ({error.what})", where=path, fix=fix) from error


def require_intact(folder: Path, *, fix: str | None = None) -> None:
    """Raise `InputError` with the first file of a store, in its index's order, that is missing or has changed.

    fix : the advice then, for a store that DVC doesn't have.
    """
    folder, fix = Path(folder), fix or _again(Path(folder))
    kept = folder.with_name(f".{folder.name}.intact.json")
    known = _known(kept)
    files = listed_files(folder)
    states = {name: _state(folder / name, digest, fix) for name, digest in files.items()}
    unread = [name for name in files if states[name] != known.get(name)]
    if not unread:
        return
    for name, digest in _digests(folder, unread):
        if digest != files[name]:
            raise InputError(
                f"the file has changed: its sha256 is {digest}, {INDEX} says {files[name]}",
                where=folder / name,
                fix=fix,
            )
    try:
        write_json(kept, states)
    except OSError:  # a store on a disk that is only read
        return


def intact_digests(stores: Iterable[Path]) -> list[str]:
    """The sha256 of each store's index, which lists those of its files. It stands for the store in a key.

    Raises `InputError` as `require_intact` does.
    """
    stores = list(stores)
    for store in stores:
        require_intact(store)
    return [sha256(Path(store) / INDEX) for store in stores]


def how_to_get(folder: Path) -> str:
    """The advice for a store, or a manifest, that isn't there."""
    if tracked := _tracked(folder):
        return f"fetch it, with `dvc pull {tracked}`"
    made = _whole(folder)
    name = f"{made.name}@{made.absolute().parent.name}"
    pulled = name if made == folder else folder
    return (
        f"fetch it, with `dvc pull {pulled}`, or make it, with `dvc repro {name}`, if it is a data set of params.yaml"
    )


def _whole(folder: Path) -> Path:
    """A data set's folder of a stage's results: a split's store lies in one of all splits."""
    return folder.parent if folder.name in SPLITS else folder


def _tracked(folder: Path) -> Path | None:
    """The .dvc file of a store, or of the folder of all splits, that DVC imported from another project."""
    named = [place.with_name(f"{place.name}.dvc") for place in (folder, _whole(folder))]
    return next((path for path in named if path.is_file()), None)


def _again(folder: Path) -> str:
    """The advice for a changed store, with DVC's name of it: that of its .dvc file, if DVC imported it."""
    tracked = _tracked(folder)
    if not tracked and (format := _imported(folder)) and not _locked(folder):
        out = _whole(folder).parent
        return f"import it again: move {out} away, then `selfalign import {format} IMAGES {out}` with its options"
    target = tracked or folder
    return (
        f"fetch it again, with `dvc checkout --force {target}` or `dvc pull --force {target}`, or make the store again"
    )


def _imported(folder: Path) -> str | None:
    """The format of the files that a store was made of, where the recipe says so."""
    try:
        return read_recipe(folder)[0]["imported"]["format"]
    except (InputError, KeyError, TypeError):
        return None


def _locked(folder: Path) -> bool:
    """Whether a stage of DVC made it: the ``dvc.lock`` of the project that it lies in lists it."""
    path = folder.absolute()
    project = next((root for root in path.parents if (root / "dvc.lock").is_file()), None)
    if project is None:
        return False
    lines = (project / "dvc.lock").read_text(encoding="utf-8", errors="replace").splitlines()
    return f"path: {path.relative_to(project).as_posix()}" in [line.strip(" -") for line in lines]


def _known(kept: Path) -> dict[str, Any]:
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _state(path: Path, digest: str, fix: str) -> list[Any]:
    """The facts that must be the same for an earlier answer to hold."""
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"the file is missing, {INDEX} lists it", where=path, fix=fix) from error
    return [digest, found.st_size, found.st_mtime_ns, found.st_ino]


def _digests(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    with ThreadPoolExecutor(_READERS) as readers:
        digests = readers.map(sha256, [folder / name for name in names])
        yield from zip(names, progress(digests, what="check", unit="files", total=len(names)), strict=True)
