"""Reads files of `torch.save`, of now and before torch 1.6, and plain pickles: dense tensors and arrays, nothing else.

Nothing of torch's own unpickling is used: tensors are views of the file's numbers, checked to lie within them.
"""

import io
import sys
import zipfile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from manifests.unpickle import Name, Refused, Unpickler, count

_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch before 1.6
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def read_zip(file: BinaryIO) -> Any:
    """The value in a file that torch 1.6 or later wrote. Raises `Refused`, or an error of `zipfile`."""
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(names) != 1:
            raise Refused("it has no data.pkl")
        root = names[0].removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and _member(archive, f"{root}byteorder") != sys.byteorder.encode():
            raise Refused("it is of a machine with another byte order")
        return _Zipped(archive, root).load()


def read_stream(file: BinaryIO) -> Any:
    """The value of a pickle, or in a file that torch before 1.6 wrote. Raises `Refused`."""
    unpickler = _Stream(file)
    value = unpickler.load()
    return unpickler.legacy() if type(value) is int and value == _MAGIC else value


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member, which `torch.save` never compresses."""
    found = archive.getinfo(name)
    if found.compress_type != zipfile.ZIP_STORED or found.file_size != found.compress_size:
        raise Refused(f"its {name} is compressed")
    if found.header_offset + found.file_size > archive.start_dir:
        raise Refused(f"its {name} claims more than it holds")
    with archive.open(found) as member:
        return member.read(found.file_size)


class _Tensors(Unpickler):
    """Reads pickles in which tensors refer to storages by persistent ids."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, records=True, calls=_CALLS)
        self._storages: dict[str, Tensor] = {}

    def persistent(self, key: Any) -> Tensor:
        if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or any(key[5:]):
            raise Refused("it refers to an object that is no storage of numbers")
        _, kind, name, _, numbers = key[:5]
        kind = kind.name.removeprefix("torch.") if isinstance(kind, Name) else None
        if kind not in _DTYPES or not isinstance(name, str):
            raise Refused("a storage of other things than numbers")
        if name not in self._storages:
            self.take(count((numbers,)) * _DTYPES[kind].itemsize)
            self._storages[name] = self.storage(name, numbers, _DTYPES[kind])
        return self._storages[name]

    def storage(self, name: str, numbers: int, dtype: torch.dtype) -> Tensor:
        """A storage of so many numbers, which the file has room for."""
        raise NotImplementedError


class _Zipped(_Tensors):
    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(_member(archive, f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self.room = 4 * archive.start_dir

    def storage(self, name: str, numbers: int, dtype: torch.dtype) -> Tensor:
        data = _member(self._archive, f"{self._root}data/{name}")
        if len(data) != numbers * dtype.itemsize:
            raise Refused(f"its data/{name} has {len(data)} bytes, not {numbers} numbers")
        return torch.frombuffer(bytearray(data), dtype=dtype) if numbers else torch.empty(0, dtype=dtype)


class _Stream(_Tensors):
    """The pickles before the numbers of the storages: a magic number, a version, the machine, the value."""

    def storage(self, name: str, numbers: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(numbers, dtype=dtype)

    def legacy(self) -> Any:
        version, machine, value, names = (self.load() for _ in range(4))
        if version != 1001 or not isinstance(machine, dict) or not isinstance(names, list):
            raise Refused("a version of torch's files that isn't known")
        if machine.get("little_endian") != (sys.byteorder == "little"):
            raise Refused("it is of a machine with another byte order")
        for name in names:
            storage = self._storages.pop(name) if isinstance(name, str) else None
            numbers = int.from_bytes(self.file.read(8), sys.byteorder)
            if storage is None or numbers != len(storage):
                raise Refused("its storages aren't those that it refers to")
            data = self.file.read(numbers * storage.itemsize)
            if numbers:
                storage.view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if self._storages:
            raise Refused("it ends before its numbers do")
        return value


def _tensor(unpickler: Unpickler, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """A view of a storage, which must not be larger than that."""
    if not isinstance(storage, Tensor) or len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise Refused("a tensor without numbers")
    numbers = count(shape)
    count(strides)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if numbers and (numbers > len(storage) or last >= len(storage)):
        raise Refused(f"a tensor of shape {list(shape)} with {len(storage)} numbers")
    unpickler.take(numbers * storage.itemsize)
    return storage.as_strided(shape, strides, offset) if numbers else torch.empty(shape, dtype=storage.dtype)


def _parameter(unpickler: Unpickler, value: Any, *_: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise Refused("a parameter that is no tensor")
    return value


_CALLS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
