"""Files that are whole or absent, and the fingerprints that name what is in them.

Every artifact of the pipeline is written through `atomic`, so that no reader and no killed run ever sees half a
file under its final name (docs/architecture.md, "Resume").
"""

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from manifests.errors import DiskFull

# Bytes hashed at a time: in smaller blocks a thread spends longer waiting for its turn than hashing.
_BLOCK = 2**22


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, sync it to disk and move it into place.

    On an exception the temporary file is removed and `path` stays as it was. Raises `DiskFull` where there is no room.
    """
    path = Path(path)
    # Machines that share a folder may share process ids.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    with room_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `out`; when the block ends well, move it into place.

    An earlier `out` is replaced only then. On an exception the temporary folder is removed and `out` stays as it was.
    Raises `DiskFull` where there is no room.
    """
    out = Path(out)
    temporary, earlier = (out.with_name(f".{out.name}.{role}") for role in ("tmp", "old"))
    for left_behind in (temporary, earlier):
        shutil.rmtree(left_behind, ignore_errors=True)
    with room_for(out):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if out.exists():
                os.replace(out, earlier)
            os.replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the system's error of a full disk, or of a used-up quota, into `DiskFull`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        raise DiskFull(
            f"{os.strerror(error.errno)}: without it, {shutil.disk_usage(folder).free / 1e6:.1f} MB are free",
            where=path,
            fix="make room on that disk, then run the same command again",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 with Unix line ends, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically: equal values give equal bytes."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, no NaN. What a fingerprint is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text, in hex."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


def sha256(path: Path, advance: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file's bytes, in hex; `advance` is told of the bytes as they are hashed."""
    whole = hashlib.sha256()
    with open(path, "rb", buffering=0) as file, closing(_blocks(file)) as blocks:
        for block in blocks:
            whole.update(block)
            if advance:
                advance(len(block))
    return whole.hexdigest()


def _blocks(file: FileIO) -> Generator[bytes | memoryview, None, None]:
    """A file's bytes; of a large file a thread reads the next block while the caller uses one."""
    if os.fstat(file.fileno()).st_size <= _BLOCK:
        yield file.readall()
        return
    used, read = (memoryview(bytearray(_BLOCK)) for _ in range(2))
    with ThreadPoolExecutor(1) as reader:
        count = file.readinto(used)
        while count:
            following = reader.submit(file.readinto, read)
            yield used[:count]
            count = following.result()
            used, read = read, used
