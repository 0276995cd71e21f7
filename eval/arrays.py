"""Arrays as files that are whole or absent. Any damage in one is an `InputError`."""

import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from extract.stores import npy
from manifests.errors import InputError
from manifests.files import atomic


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one `.npy` file atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one `.npz` file of named arrays atomically; equal arrays give equal bytes."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def open_array(path: Path, dtype: str, dims: int, *, fix: str) -> np.ndarray:
    """Map a `.npy` file; no change to the array reaches it. Raises InputError, with `fix`, unless it is whole, of this
    dtype and of so many dimensions."""
    try:
        with open(path, "rb") as file:
            header, size = npy.read_header(file, path, fix=fix), path.stat().st_size
    except OSError as error:
        raise InputError(f"it can't be read ({error.strerror})", where=path, fix=fix) from error
    if size != header.offset + header.size:
        message = f"{size - header.offset} bytes of numbers, its shape {list(header.shape)} needs {header.size}"
        raise InputError(message, where=path, fix=fix)
    if header.dtype != np.dtype(dtype) or len(header.shape) != dims:
        message = f"{header.dtype} of shape {list(header.shape)}, not {dtype} of {dims} dimensions"
        raise InputError(message, where=path, fix=fix)
    if not header.size:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "c", header.offset, header.shape)


def release(array: np.ndarray) -> None:
    """Take a mapped file out of this process's resident memory: 16 pages are mapped around each that is read.

    Nothing may have been written to the array.
    """
    mapped: mmap.mmap | None = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def read_arrays(path: Path, expected: Mapping[str, tuple[str, int]], *, fix: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name. `expected` has each one's kind of dtype (NumPy's letter) and number of
    dimensions. Raises InputError, with `fix`, where one is missing or differs."""
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, (kind, _) in expected.items():
                member = archive.getinfo(f"{name}.npy")
                if member.file_size > path.stat().st_size:  # they are stored as they are
                    raise ValueError(f"{name} unpacks to {member.file_size} bytes")
                found[name] = npy.parse(archive.read(member), f"{path} {name}", fix=fix, kinds=kind)
    except InputError:
        raise
    except Exception as error:  # zipfile raises whatever a damaged file leads it to
        message = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        raise InputError(f"no arrays that can be read ({message})", where=path, fix=fix) from error
    for name, (kind, dims) in expected.items():
        if found[name].dtype.kind != kind or not found[name].dtype.isnative or found[name].ndim != dims:
            message = f"{name} is {found[name].dtype} {list(found[name].shape)}, not {dims} dimensions of kind {kind!r}"
            raise InputError(message, where=path, fix=fix)
    return found
