"""Opens what a user brings, where it is a file: a pipe or a device in its place can wait, or go on, forever.

A path that goes on behind a tar file (`00000.tar/KEY.jpg`) names a member of it.
"""

import errno
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

T, U = TypeVar("T"), TypeVar("U")

MOST_ROW = 2**26
"""Bytes of a row, a line or a member that are read at once: what a few bytes claim must not take the memory."""
MAX_PIXELS = 64_000_000
"""Pixels that a picture may have unless settings say otherwise."""
PILLOWS_LIMIT = 178_956_970
"""Pixels above which Pillow refuses a picture, whatever settings say."""

_TOGETHER = 1024
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path, buffering: int = -1) -> BinaryIO:
    """A file opened to be read, at once. Raises OSError where it can't be, and where it, or what it links to, is none.

    The error's `strerror` says what is there instead: "it is a pipe, not a file". A member of a tar file is read into
    memory.
    """
    try:
        return open(path, "rb", buffering, opener=_opened)
    except NotADirectoryError:
        return io.BytesIO(_member(Path(path)))


def read_file(path: Path) -> bytes:
    """All bytes of a file, with the errors of `open_file`."""
    with open_file(path) as file:
        return file.read()


def in_threads(work: Callable[[T], U], items: Iterable[T]) -> Iterator[tuple[T, U]]:
    """Each item with ``work(item)``, in their order, in more threads than cores; few items wait at a time."""
    waiting = iter(items)
    with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
        while batch := list(islice(waiting, _TOGETHER)):
            yield from zip(batch, pool.map(work, batch), strict=True)


def _member(path: Path) -> bytes:
    """The bytes of a file in a tar archive. Raises OSError where there is none."""
    archive = next((folder for folder in path.parents if folder.suffix == ".tar" and folder.is_file()), None)
    if archive is None:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))
    found = archive.stat()
    places = _members(archive, found.st_size, found.st_mtime_ns)
    name = path.relative_to(archive).as_posix()
    if name not in places:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    offset, size = places[name]
    with open_file(archive) as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(16)
def _members(archive: Path, size: int, changed: int) -> dict[str, tuple[int, int]]:
    """Name -> offset and size of the files in a tar archive that is so large and was changed then."""
    try:
        with open_file(archive) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            return {member.name: (member.offset_data, member.size) for member in opened if member.isreg()}
    except tarfile.TarError as error:
        raise OSError(errno.EINVAL, f"not a whole tar archive ({error})", os.fspath(archive)) from None


def _opened(path: str, flags: int) -> int:
    _require_file(os.stat(path), path)  # before the opening, which some devices notice
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _require_file(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_file(found: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))
