"""Tries in forked children: each has 20 seconds and 1 GB more than it was born with, and tells how it ended."""

import ctypes
import faulthandler
import gc
import os
import pickle
import re
import resource
import selectors
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from manifests.errors import InputError

SECONDS, BYTES, AT_ONCE = 20, 2**30, 2
_LATE = b"Timeout"  # what faulthandler begins with


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a try ended: "success", "InputError", or what must not be; `message` is the error, or where it came from."""

    seed: int
    end: str
    message: str

    @property
    def well(self) -> bool:
        return self.end in ("success", "InputError")


def outcomes(seeds: Iterable[int], work: Callable[[int], str]) -> Iterator[Outcome]:
    """What became of ``work(seed)`` for each seed, each in a child of its own, `AT_ONCE` at a time."""
    gc.freeze()  # a collection in a child would touch, and so copy, every page of the parent's
    waiting, running = list(seeds)[::-1], selectors.DefaultSelector()
    while waiting or running.get_map():
        while waiting and len(running.get_map()) < AT_ONCE:
            seed = waiting.pop()
            read, write = os.pipe()
            child = os.fork()
            if not child:
                os.close(read)
                _live(write, work, seed)
            os.close(write)
            running.register(read, selectors.EVENT_READ, (seed, child, bytearray(), time.monotonic()))
        for key, _ in running.select():
            seed, child, answer, born = key.data
            block = os.read(key.fd, 65536)
            answer += block
            if not block:
                running.unregister(key.fd)
                os.close(key.fd)
                yield _outcome(seed, child, bytes(answer), time.monotonic() - born)
    gc.unfreeze()


def _outcome(seed: int, child: int, answer: bytes, seconds: float) -> Outcome:
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        message = f"after {seconds:.1f} s, killed by {signal.Signals(number).name}"
        return Outcome(seed, "crash", message)
    if answer.startswith(_LATE):
        return Outcome(seed, "hang", answer.decode(errors="replace"))
    if not answer:
        return Outcome(seed, "crash", f"exit code {os.WEXITSTATUS(status)} without a word")
    return Outcome(seed, *pickle.loads(answer))


def _live(write: int, work: Callable[[int], str], seed: int) -> None:
    """Run a child process from its start to its end."""
    try:
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=write)
        _limit_memory()
        # A thread of the parent's, which isn't here, may have held the lock; and another process shares it.
        tqdm.set_lock(threading.RLock())
        tqdm.monitor, tqdm.monitor_interval = None, 0
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        os.fsync = lambda _: None  # no machine fails here, and disks are slow
        try:
            answer = "success", work(seed)
        except InputError as error:
            answer = "InputError", str(error)
        except BaseException as error:
            answer = type(error).__name__, "".join(traceback.format_exception(error, limit=-12))[-4000:]
        message = pickle.dumps(answer)
        while message:
            message = message[os.write(write, message) :]
    finally:
        os._exit(0)


def _limit_memory() -> None:
    """No more than `BYTES` of memory that is written to; of idle threads' address space there may be more."""
    status = Path("/proc/self/status")
    if not status.exists():
        return
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: 64 MB a thread otherwise
    used = int(re.search(r"VmData:\s+(\d+) kB", status.read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + BYTES, used + BYTES))
