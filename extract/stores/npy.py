"""NumPy's .npy layout, read without ever unpickling: the header first, so that lengths are known before memory is used.

Source: "NEP 1: a simple file format for NumPy arrays". The writer is `numpy.lib.format`'s.
"""

import io
import math
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from manifests.errors import InputError
from manifests.locks import PYTHON_PARSER

_MOST_HEADER = 10_000
NUMBERS = "biufc"


class Header(NamedTuple):
    """Shape and dtype of an array, the offset of its first number, and whether the numbers are in Fortran's order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    fortran: bool = False

    @property
    def size(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: BinaryIO, where: object, *, fix: str, kinds: str = NUMBERS, fortran_too: bool = False) -> Header:
    """The header of `file`, from its first byte on.

    Raises InputError for a pickle, Fortran order unless `fortran_too`, a dtype of another kind than `kinds`, or a file
    that is no .npy.
    """
    start = io.BytesIO(file.read(_MOST_HEADER))
    try:
        version = npy.read_magic(start)
        reader = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        with PYTHON_PARSER:
            shape, fortran, dtype = reader(start, max_header_size=_MOST_HEADER)
    except Exception as error:  # a damaged header is read as Python, and leads anywhere
        raise InputError(f"not a .npy array ({error or type(error).__name__})", where=where, fix=fix) from None
    if dtype.hasobject:
        raise InputError(
            "it holds pickled Python objects, which are never loaded: they can run code", where=where, fix=fix
        )
    if fortran and len(shape) > 1 and not fortran_too:
        raise InputError("its numbers are in Fortran order", where=where, fix="save it with np.ascontiguousarray")
    if dtype.kind not in kinds or dtype.shape or not all(0 <= side < 2**62 for side in shape):
        raise InputError(f"{dtype} of shape {list(shape)}: not an array of numbers", where=where, fix=fix)
    return Header(tuple(shape), dtype, start.tell(), fortran)


def parse(data: bytes, where: object, *, fix: str, kinds: str = NUMBERS) -> np.ndarray:
    """The array of a whole .npy file's bytes. Raises InputError also where these are too few or too many."""
    header = read_header(io.BytesIO(data), where, fix=fix, kinds=kinds, fortran_too=True)
    if len(data) - header.offset != header.size:
        raise InputError(
            f"{len(data) - header.offset} bytes of numbers, its shape {list(header.shape)} needs {header.size}",
            where=where,
            fix=fix,
        )
    try:
        order = "F" if header.fortran else "C"
        return np.frombuffer(data, header.dtype, offset=header.offset).reshape(header.shape, order=order)
    except (ValueError, OverflowError) as error:  # sides beyond NumPy's, of no numbers
        raise InputError(f"not a .npy array ({error})", where=where, fix=fix) from None


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    """Write the header of a .npy file; its numbers follow in C order."""
    fields = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, fields)
