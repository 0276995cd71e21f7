"""Few files open: a store has any number of shards, and a process may have 256 files open on some machines."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from manifests.opening import open_file

T = TypeVar("T")
MOST_OPEN = 64
_open: OrderedDict[int, tuple[object, weakref.ref]] = OrderedDict()
_turn = threading.Lock()
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)


class Descriptor:
    """The number of a file that is open to be read; it is closed with its last user. Raises OSError as `open_file`."""

    def __init__(self, path: Path):
        file = open_file(path, buffering=0)
        self.number = file.fileno()
        weakref.finalize(self, file.close)


def opened(owner: object, open: Callable[[], T]) -> T:
    """The result of ``open()`` for `owner`, which must not hold it itself.

    It is let go when `MOST_OPEN` others were asked for since, or with its owner. A caller that uses it at that moment
    holds it a little longer. Safe in threads and after a fork.
    """
    key = id(owner)
    with _turn:
        if key in _open:
            _open.move_to_end(key)
        else:
            _open[key] = open(), weakref.ref(owner, lambda _: _open.pop(key, None))
            if len(_open) > MOST_OPEN:
                _open.popitem(last=False)
        return _open[key][0]  # type: ignore[return-value]
