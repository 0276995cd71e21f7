"""One writer at a time: whoever is to make an artifact holds a lock beside it, and says so to whoever waits for it.

The lock is the operating system's; where a disk has none, a file with a heartbeat that a dead holder's successor takes
over (`filelock`).
"""

import errno
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from filelock import FileLock, SoftFileLease, Timeout
from tqdm import tqdm

from manifests.errors import InputError
from manifests.files import fingerprint, room_for, write_json

F = TypeVar("F", bound=Callable[..., Any])
# What flock says on a disk without locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
LEASE = 30.0  # seconds without a heartbeat after which a holder on another machine counts as dead
_POLL = 0.2
PYTHON_PARSER = threading.RLock()
"""Held while Python's parser runs: before Python 3.11.8 two threads in it at once can fail with a SystemError."""


@contextmanager
def sole_writer(
    out: Path,
    work: str,
    key: Any = None,
    *,
    staging: Path | None = None,
    wait: bool = True,
    remember: bool = False,
    beside: Sequence[Path] = (),
) -> Iterator[bool]:
    """Hold the lock of the artifact `out` (file or folder) while it is made, and that of its `staging` folder.

    Gives whether it is made already: the process that was waited for made `out` of the same `key`, and all of it is
    still there. A lock is not reentrant.

    Parameters
    ----------
    work : names what is done, for whoever waits: "extraction of coco".
    key : JSON of everything that decides `out`; without one, `out` is made again after waiting.
    staging : folder of unfinished work that another `out` may share.
    wait : whether to wait for another writer. Raises `InputError` that names it if not.
    remember : whether `out` counts as made whoever made it of the same key, as long as no file was touched since.
    beside : further files that are made with `out`.
    """
    out, digest = Path(out), fingerprint(key)
    with ExitStack() as held:
        waited = _hold(held, out, work, wait)
        if key is not None and (waited or remember) and _is_made(out, digest, untouched=not waited):
            by = "by the process that was waited for" if waited else "of the same inputs, settings and code"
            tqdm.write(f"{out} is made already, {by}")
            yield True
            return
        if staging is not None:
            _hold(held, staging, work, wait)
        yield False
        if key is not None:
            _note_made(out, digest, beside)


def one_writer(
    work: str,
    key: Callable[..., Any] | None = None,
    beside: Callable[..., Sequence[Path]] = lambda **arguments: (),
) -> Callable[[F], F]:
    """Have a stage's ``run(*, out, ...)`` hold the lock of its `out` (`sole_writer`).

    `work` names the work, for a process that waits: "tokens". `key`, called with the same arguments, gives JSON of all
    that decides `out`. Where it equals that of the last time, and no file was touched since, nothing is done. `beside`
    gives the files that are made with `out`.
    """

    def decorated(run: F) -> F:
        @wraps(run)
        def alone(*, out: Path, **arguments: Any) -> Any:
            decides = key(out=out, **arguments) if key else None
            others = beside(**arguments)
            with sole_writer(out, f"{work} of {out}", decides, remember=True, beside=others) as made:
                return None if made else run(out=out, **arguments)

        return cast(F, alone)

    return decorated


def _hold(held: ExitStack, place: Path, work: str, wait: bool) -> bool:
    """Hold the lock beside `place` until `held` ends; returns whether it was somebody else's before."""
    new_folders = [folder for folder in place.absolute().parents if not folder.exists()]
    path = place.with_name(f".{place.name}.lock")
    lock: FileLock | SoftFileLease = FileLock(path, thread_local=False, fallback_to_soft=False)
    waited = False
    while not lock.is_locked:
        try:
            with room_for(place):
                place.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=waited, poll_interval=_POLL)
        except Timeout:
            message = f"another {work} is running{_holder(lock)}"
            if not wait:
                raise InputError(message, where=place, fix="wait until it has ended, or stop it") from None
            tqdm.write(f"{message}: waiting until it has ended")
            waited = True
        except FileNotFoundError:  # another process has just removed the folder, which it had made in vain
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS or not isinstance(lock, FileLock):
                raise
            path.unlink(missing_ok=True)
            lock = SoftFileLease(path.with_suffix(".lease"), thread_local=False, lease_duration=LEASE)
    held.callback(_remove_empty, new_folders)
    held.callback(lock.release)
    if isinstance(lock, FileLock):
        # Only the holder removes the file: who has opened it meanwhile sees that it is gone, and opens the next one.
        held.callback(path.unlink, missing_ok=True)
        path.write_text(f"{os.getpid()} {platform.node()}\n", encoding="utf-8")
    return waited


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # it holds something
            folder.rmdir()


def _holder(lock: FileLock | SoftFileLease) -> str:
    """Process and host of who holds a lock, as far as it says so."""
    if isinstance(lock, SoftFileLease):
        return f": process {lock.owner.pid} on {lock.owner.hostname}" if lock.owner else ""
    with suppress(OSError, ValueError):
        process, host = Path(lock.lock_file).read_text(encoding="utf-8").split()
        return f": process {int(process)} on {host}"
    return ""


def _record(out: Path) -> Path:
    return out.with_name(f".{out.name}.made.json")


def _note_made(out: Path, key: str, beside: Sequence[Path]) -> None:
    """Note beside `out` what it was made of, and the state of each file."""
    own = _own(out)
    write_json(
        _record(out), {"key": key, "files": {os.path.relpath(path, out): _state(path) for path in [*own, *beside]}}
    )


def _is_made(out: Path, key: str, *, untouched: bool) -> bool:
    """Whether `out` was made of this key, and its files have the sizes they had then; or are `untouched` since."""
    try:
        made = json.loads(_record(out).read_text(encoding="utf-8"))
        if untouched and not {os.path.relpath(path, out) for path in _own(out)} <= made["files"].keys():
            return False
        compared = 3 if untouched else 1
        files = ((_state(out / name)[:compared], state[:compared]) for name, state in made["files"].items())
        return made["key"] == key and all(now == then for now, then in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _own(out: Path) -> list[Path]:
    """The files of an artifact."""
    return [path for path in sorted(out.rglob("*")) if path.is_file()] if out.is_dir() else [out]


def _state(path: Path) -> list[int]:
    """Size, time of change and inode of a file."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]
