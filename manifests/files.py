"""Files that are whole or absent, and the fingerprints that name what is in them.

Every artifact of the pipeline is written through `atomic`: half a file never has its final name, not even after a
killed run (docs/architecture.md, "Resume").
"""

import errno
import glob
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from typing import Any

from manifests.errors import DiskFull, InputError

# Bytes hashed at a time: in smaller blocks a thread spends longer waiting for its turn than hashing.
_BLOCK = 2**22
_ROLES = ("tmp", "old")  # of a temporary path: what is written, what was there before


@contextmanager
def atomic(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, sync it to disk and move it into place.

    On an exception the temporary file is removed and `path` stays as it was. Raises `DiskFull` where there is no room,
    and `InputError` where the folder is gone. Without `make_folder` it must be there already: a staging folder that
    vanished was given up.
    """
    path = Path(path)
    written = temporary(path)
    with room_for(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield written
            _sync(written)
            os.replace(written, path)
        except FileNotFoundError as error:
            if path.parent.is_dir():
                raise
            raise InputError(
                "the folder was removed while a file was written to it",
                where=path.parent,
                fix="run the same command again",
            ) from error
        finally:
            written.unlink(missing_ok=True)
        _sync(path.parent)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `out`; when the block ends well, sync it to disk and move it into place.

    An earlier `out` is replaced only then. On an exception the temporary folder is removed and `out` stays as it was.
    Where even that fails, the error names the path of the earlier folder. Leftovers of a killed process are put back,
    or removed, by the next one. The caller is the only writer (`manifests.locks.sole_writer`). Raises
    `DiskFull` where there is no room.
    """
    out = Path(out)
    written, earlier = temporary(out), temporary(out, "old")
    with room_for(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _recover(out)
        written.mkdir()
        try:
            yield written
            for folder, _, files in os.walk(written, topdown=False):
                for name in files:
                    _sync(Path(folder, name))
                _sync(Path(folder))
            _replace(written, out, earlier)
        finally:
            shutil.rmtree(written, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def _replace(folder: Path, out: Path, earlier: Path) -> None:
    """Give `folder` the name `out`; what had it before is `earlier` then, and `out` again where this fails."""
    replaced = out.exists()
    if replaced:
        os.replace(out, earlier)
    try:
        os.replace(folder, out)
    except BaseException as error:
        if replaced:
            with _earlier_kept(out, earlier, "could not be replaced", error):
                os.replace(earlier, out)
        raise
    with _earlier_kept(out, earlier, "may not be on the disk itself") if replaced else nullcontext():
        _sync(out.parent)


@contextmanager
def _earlier_kept(out: Path, earlier: Path, what: str, cause: BaseException | None = None) -> Iterator[None]:
    """Turn an OSError into an `InputError` that says where the earlier folder is."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"it {what} ({cause or error}); what was there before is whole, in {earlier}",
            where=out,
            fix=f"to have that back: `mv {earlier} {out}`, after moving away what else has this name",
        ) from error


def _recover(out: Path) -> None:
    """Put back the folder that a killed process had moved away, where there is no other; remove its other leftovers."""
    for path in abandoned(out.parent, out.name):
        if path.suffix == ".old" and not out.exists():
            os.replace(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def abandoned(folder: Path, name: str | None = None) -> Iterator[Path]:
    """What earlier processes of this machine left of `name` in `folder`, or of any name: they are no more."""
    ours = f"{'*' if name is None else glob.escape(name)}.{glob.escape(platform.node())}"
    for path in folder.glob(f".{ours}.*"):
        whole, process, role = path.name.rsplit(".", 2)
        if role not in _ROLES or not process.isdigit() or (name and whole != f".{name}.{platform.node()}"):
            continue
        if int(process) == os.getpid() or not _is_alive(int(process)):
            yield path


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def temporary(path: Path, role: str = "tmp") -> Path:
    """The name under which this process writes beside `path`. Machines that share a folder may share process ids."""
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.{role}")


def _sync(path: Path) -> None:
    """Have a file's bytes, or a folder's names, written to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that can't be. Raises `InputError` where it was removed."""
    try:
        os.link(source, target)
        return
    except FileNotFoundError as error:
        raise InputError(
            "a finished shard was removed", where=source, fix="run the stage again: it makes only what is missing"
        ) from error
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


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
    """SHA-256 of a file's bytes, in hex; `advance` is called with the number of bytes as they are hashed."""
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
