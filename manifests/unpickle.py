"""Reads pickles without running them: dictionaries, lists, strings, numbers and arrays of numbers, and nothing else.

An interpreter of the opcodes, for Python's own builds whatever a pickle names and takes room for whatever it claims.
No name is ever imported: those in `CALLS` stand for functions here, which check what they are given, and others are
refused. A class whose instances hold only state (`argparse.Namespace`) may become an inert `Record` instead.
"""

import math
import pickletools
import re
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from manifests.opening import MOST_ROW

_MOST_STEPS = 2_000_000  # opcodes: one can make 200 bytes of an empty set
_MOST_NUMBERED = 5_000
_SLACK = 2**20  # bytes that may be built of a small file
_NUMERIC = re.compile(r"[<>=|]?[biufc][0-9]{1,2}")
_PLAIN = (str, int, float, complex, bytes, type(None), np.generic)  # what a key may be
_DATA = re.compile(r"NONE|NEW(TRUE|FALSE)|INT|LONG[14]?|BININT[12]?|(BIN)?FLOAT|(SHORT_)?(BIN)?(STRING|BYTES)8?"
                   r"|(SHORT_)?(BIN)?UNICODE8?|BYTEARRAY8")  # fmt: skip


class Refused(Exception):
    """The pickle is damaged, asks for what isn't given, or claims more than it holds; the message says what."""


class Record(NamedTuple):
    """Stands for an object of a class that isn't built."""

    name: str


class Name(NamedTuple):
    """A class or function that a pickle names; never imported."""

    name: str


class _Mark:
    """Where the items of a list or a dictionary begin on the stack."""


class _DType:
    """A type of numbers, or of objects, of which the byte order may follow."""

    def __init__(self, dtype: np.dtype | None):
        self.dtype = dtype

    def numeric(self) -> np.dtype:
        if self.dtype is None:
            raise Refused("an array of objects where there must be numbers")
        return self.dtype


class Unpickler:
    """Reads pickles from a file that lie one after the other.

    Parameters
    ----------
    file : seekable, read from where it stands.
    records : whether an instance of an unknown class becomes a `Record`; else it is refused.
    calls : more functions by the names that pickles have for them.

    Strings of Python 2 are read as Latin-1. `room` is how many bytes may still be built.
    """

    def __init__(self, file: BinaryIO, *, records: bool = False, calls: dict[str, Callable[..., Any]] | None = None):
        self.file = _Bounded(file)
        self._records = records
        self._calls = {**CALLS, **(calls or {})}
        self.room = 4 * self.file.left + _SLACK
        self._steps = self._numbered = 0

    def take(self, size: int) -> None:
        """Account for `size` bytes that are to be built. Raises `Refused` beyond what the file can hold."""
        self.room -= size
        if size < 0 or self.room < 0:
            raise Refused("it claims more than it holds")

    def persistent(self, key: Any) -> Any:
        """What stands for a persistent id: nothing here."""
        raise Refused("it refers to what is outside of it")

    def load(self) -> Any:
        """The next pickle's value. Raises `Refused`."""
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        try:
            for opcode, argument, _ in pickletools.genops(self.file):
                self._steps += 1
                if self._steps > _MOST_STEPS:
                    raise Refused("it has too many parts")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument)
        except Refused:
            raise
        except Exception as error:  # damaged pickles lead anywhere
            raise Refused(f"it is damaged: {error or type(error).__name__}") from None
        raise Refused("it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if _DATA.fullmatch(name):
            constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
            stack.append(constants.get(name, argument))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            step = _STEPS.get(name)
            if step is None:
                raise Refused(f"it has the opcode {name}")
            step(self, argument)

    def _items(self) -> list[Any]:
        """What lies above the last mark, which is taken off too."""
        place = len(self._stack) - 1
        while not isinstance(self._stack[place], _Mark):
            place -= 1
            if place < 0:
                raise Refused("it is damaged: no mark")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _pop(self, count: int) -> list[Any]:
        items = self._stack[len(self._stack) - count :]
        if len(items) < count or any(isinstance(item, _Mark) for item in items):
            raise Refused("it is damaged: too little on its stack")
        del self._stack[-count:]
        return items

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _keys(self, items: list[Any]) -> list[Any]:
        """Items that may be keys: plain ones, and few that aren't text, whose hashes somebody can make collide."""
        for item in items:
            parts = item if isinstance(item, tuple) else (item,)
            if not all(isinstance(part, _PLAIN) for part in parts):
                raise Refused("a key that is neither text nor a number")
        self._numbered += sum(not isinstance(item, str | bytes) for item in items)
        if self._numbered > _MOST_NUMBERED:
            raise Refused(f"more than {_MOST_NUMBERED} keys that are no text")
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(self._keys(items))
        elif not isinstance(target, Record):
            raise Refused("items of what is no list")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(zip(self._keys(items[::2]), items[1::2], strict=True))
        elif not isinstance(target, Record):
            raise Refused("keys of what is no dictionary")

    def _global(self, argument: str | None) -> None:
        module, name = argument.split(" ", 1) if argument is not None else self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("a name that is no text")
        self._push(Name(f"{_MODULES.get(module, module)}.{name}"))

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Refused("it calls what is no function")
        if function.name == "copyreg._reconstructor":
            return self._instance(*arguments[:1])
        if function.name in _INERT and self._records:
            return Record(function.name)
        if function.name not in self._calls:
            raise Refused(f"it asks for {function.name}, which arrays don't need and which could run code")
        return self._calls[function.name](self, *arguments)

    def _instance(self, kind: Any, *_: Any) -> Any:
        if isinstance(kind, Name) and kind.name in self._calls:
            return self._calls[kind.name](self)
        if not isinstance(kind, Name) or not self._records:
            raise Refused(f"it asks for {kind.name if isinstance(kind, Name) else type(kind)}, which could run code")
        return Record(kind.name)

    def _build(self, _: None) -> None:
        (state,) = self._pop(1)
        target = self._stack[-1]
        if isinstance(target, _DType):
            _set_byte_order(target, state)
        elif isinstance(target, np.ndarray):
            self._stack[-1] = _fill(self, target, *state)
        elif not isinstance(target, Record | dict):  # of an OrderedDict, attributes that torch adds
            raise Refused("it sets the state of what has none")


class _Bounded:
    """A file that doesn't try to read beyond its end, nor lines without one."""

    def __init__(self, file: BinaryIO):
        self._file, start = file, file.tell()
        self._size = file.seek(0, 2)
        file.seek(start)

    @property
    def left(self) -> int:
        return self._size - self._file.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise Refused("it ends inside a value")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(MOST_ROW)


# -- What names stand for ----------------------------------------------------------------------------------------------


def _dtype(unpickler: Unpickler, spec: Any, *_: Any) -> _DType:
    if isinstance(spec, bytes):
        spec = spec.decode("latin1")
    if spec in ("O", "O8", "O4"):
        return _DType(None)
    if not isinstance(spec, str) or not _NUMERIC.fullmatch(spec):
        raise Refused("an array of other things than numbers")
    return _DType(np.dtype(spec))


def _set_byte_order(target: _DType, state: Any) -> None:
    _, order, *others = state
    order = order.decode("latin1") if isinstance(order, bytes) else order
    if order not in ("<", ">", "=", "|") or any(value is not None for value in others[:3]):
        raise Refused("a type of array that isn't numbers")
    if target.dtype is not None and order != "|":
        target.dtype = target.dtype.newbyteorder(order)


def _checked(unpickler: Unpickler, data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """A flat copy of the numbers in `data`, in this machine's byte order; they must be as many as `shape` says."""
    if isinstance(data, str):  # as Python 2 spells bytes
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _DType):
        raise Refused("an array without numbers")
    if count(shape) * dtype.numeric().itemsize != len(data):
        raise Refused(f"an array of shape {list(shape)} has {len(data)} bytes")
    unpickler.take(len(data))
    return np.frombuffer(data, dtype.numeric()).astype(dtype.numeric().newbyteorder("="))


def count(shape: Any) -> int:
    """How many numbers an array of a shape has. Raises `Refused` for what is no shape."""
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(x) is int and 0 <= x < 2**62 for x in shape):
        raise Refused("an array of no shape")
    return math.prod(shape)


def _empty_array(unpickler: Unpickler, kind: Any, shape: Any, *_: Any) -> np.ndarray:
    if not isinstance(kind, Name) or kind.name != "numpy.ndarray" or shape != (0,):
        raise Refused("an array of a class of its own, or of a size before its numbers")
    return np.empty(0, np.uint8)


def _fill(unpickler: Unpickler, target: np.ndarray, _: int, shape: Any, dtype: Any, fortran: Any, data: Any) -> Any:
    """The array, or the list of the objects of one that has objects."""
    if isinstance(dtype, _DType) and dtype.dtype is None:
        if not isinstance(data, list) or count(shape) != len(data):
            raise Refused("an array of objects that are not there")
        return data
    values = _checked(unpickler, data, dtype, shape)
    target.__setstate__((1, shape, values.dtype, fortran is True, values.tobytes()))  # keeps it the same object
    return target


def _from_buffer(unpickler: Unpickler, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _checked(unpickler, data, dtype, shape).reshape(shape, order="F" if order == "F" else "C")


def _scalar(unpickler: Unpickler, dtype: Any, data: Any) -> np.generic:
    return _checked(unpickler, data, dtype, (1,))[0]


def _encode(unpickler: Unpickler, text: Any, encoding: Any) -> bytes:
    """How Python 2 and protocol 2 spell bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("bytes in another encoding than Latin-1")
    unpickler.take(len(text))
    return text.encode("latin1")


def _bytes(unpickler: Unpickler, *arguments: Any) -> bytes:
    if arguments:
        raise Refused("bytes of another value")
    return b""


def _dict(unpickler: Unpickler, pairs: Any = (), *_: Any) -> dict:
    """Build an OrderedDict, or a defaultdict of any factory, as a plain dictionary."""
    pairs = () if isinstance(pairs, Name) else pairs
    if not isinstance(pairs, list | tuple) or not all(isinstance(x, list | tuple) and len(x) == 2 for x in pairs):
        raise Refused("a dictionary of no pairs")
    unpickler.take(100 * len(pairs))
    return dict(zip(unpickler._keys([key for key, _ in pairs]), [value for _, value in pairs], strict=True))


def _make_set(kind: type) -> Callable[..., Any]:
    def make(unpickler: Unpickler, items: Any = ()) -> Any:
        if not isinstance(items, list | tuple):
            raise Refused("a set of no list")
        unpickler.take(100 * len(items))
        return kind(unpickler._keys(list(items)))

    return make


_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}
CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _empty_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _from_buffer,
    "_codecs.encode": _encode,
    "builtins.bytes": _bytes,
    "builtins.set": _make_set(set),
    "builtins.frozenset": _make_set(frozenset),
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
}
# Values in the arguments that checkpoints keep, of no use to a forward pass.
_INERT = {"torch.device", "torch.Size", *(f"pathlib.{kind}Path" for kind in ("", "Pure", "Posix", "PurePosix"))}


_STEPS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "MARK": lambda u, _: u._push(_Mark()),
    "POP": lambda u, _: u._stack.pop(),
    "POP_MARK": lambda u, _: u._items(),
    "DUP": lambda u, _: u._push(u._stack[-1]),
    "EMPTY_LIST": lambda u, _: u._push([]),
    "EMPTY_TUPLE": lambda u, _: u._push(()),
    "EMPTY_DICT": lambda u, _: u._push({}),
    "EMPTY_SET": lambda u, _: u._push(set()),
    "LIST": lambda u, _: u._push(u._items()),
    "TUPLE": lambda u, _: u._push(tuple(u._items())),
    "TUPLE1": lambda u, _: u._push(tuple(u._pop(1))),
    "TUPLE2": lambda u, _: u._push(tuple(u._pop(2))),
    "TUPLE3": lambda u, _: u._push(tuple(u._pop(3))),
    "FROZENSET": lambda u, _: u._push(frozenset(u._keys(u._items()))),
    "DICT": lambda u, _: u._push(_dict(u, [*zip(*[iter(u._items())] * 2, strict=True)])),
    "APPEND": lambda u, _: u._extend(u._pop(1)),
    "APPENDS": lambda u, _: u._extend(u._items()),
    "ADDITEMS": lambda u, _: u._extend(u._items()),
    "SETITEM": lambda u, _: u._set(u._pop(2)),
    "SETITEMS": lambda u, _: u._set(u._items()),
    "GLOBAL": Unpickler._global,
    "STACK_GLOBAL": Unpickler._global,
    "REDUCE": lambda u, _: u._push(u._call(*u._pop(2))),
    "NEWOBJ": lambda u, _: u._push(u._instance(u._pop(2)[0])),
    "NEWOBJ_EX": lambda u, _: u._push(u._instance(u._pop(3)[0])),
    "OBJ": lambda u, _: u._push(u._instance(*u._items())),
    "INST": lambda u, name: (u._items(), u._global(name), u._push(u._instance(*u._pop(1)))),
    "BUILD": lambda u, argument: u._build(argument),
    "PERSID": lambda u, key: u._push(u.persistent(key)),
    "BINPERSID": lambda u, _: u._push(u.persistent(*u._pop(1))),
}


def unpickle(file: BinaryIO) -> Any:
    """The one value of a pickle of plain values and arrays. Raises `Refused`."""
    return Unpickler(file).load()
