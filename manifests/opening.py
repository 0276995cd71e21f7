"""Opens what a user brings, where it is a file: a pipe or a device in its place can wait, or go on, forever."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_ROW = 2**26
"""Bytes of a row, a line or a member that are read at once: what a few bytes claim must not take the memory."""
MAX_PIXELS = 64_000_000
"""Pixels that a picture may have unless settings say otherwise."""
PILLOWS_LIMIT = 178_956_970
"""Pixels above which Pillow refuses a picture, whatever settings say."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path, buffering: int = -1) -> BinaryIO:
    """A file opened to be read, at once. Raises OSError where it can't be, and where it, or what it links to, is none.

    The error's `strerror` says what is there instead: "it is a pipe, not a file".
    """
    return open(path, "rb", buffering, opener=_opened)


def read_file(path: Path) -> bytes:
    """All bytes of a file, with the errors of `open_file`."""
    with open_file(path) as file:
        return file.read()


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
