"""HDF5 files that are equal byte for byte when their arrays are equal, read through one memory map.

Datasets are contiguous and uncompressed, written whole in the order given, in HDF5's earliest format and without
times: that is byte-identical across HDF5 1.14 and 2.0 (chunked or compressed is not), and lets a reader map the file
and skip HDF5 altogether: about 95 % of memcpy speed, against 30 % through h5py slicing.
"""

import errno
import io
import math
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from manifests.errors import InputError
from manifests.files import atomic


def write_hdf5(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str | int]) -> None:
    """Write `arrays` as contiguous datasets, in their order, with root `attributes`, atomically.

    Raises `DiskFull` where there is no room, and OSError for what else goes wrong with the disk.
    """
    with atomic(path, make_folder=False) as temporary, _Disk(temporary) as disk:
        with h5py.File(disk, "w", libver="earliest", track_order=False) as file:
            for name, value in attributes.items():
                file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
            for name, array in arrays.items():
                file.create_dataset(name, data=np.ascontiguousarray(array), track_times=False)
        if disk.error:
            raise disk.error


class _Disk(io.FileIO):
    """The file that HDF5 writes, which never tells HDF5 of an error: it crashes on a full disk.

    `error` is the first error; nothing is written after it.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: memoryview) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while len(left) and not self.error:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


class _Layout(NamedTuple):
    """Where the datasets of a file lie: name -> (offset, shape, dtype); the root attributes; the file's bytes."""

    datasets: dict[str, tuple[int, tuple[int, ...], np.dtype]]
    attributes: dict[str, str | int]
    size: int


class _Open:
    """A file that is open: its descriptor, and its datasets as views of one memory map. Closed with its last user."""

    def __init__(self, path: Path, layout: _Layout):
        self.file = open_file(path)
        weakref.finalize(self, os.close, self.file)
        if (size := os.fstat(self.file).st_size) != layout.size:
            raise InputError(
                f"it has {size} bytes, it had {layout.size} when it was opened first",
                where=path,
                fix="leave a store alone while it is read, and run the command again",
            )
        mapped = np.frombuffer(mmap.mmap(self.file, 0, access=mmap.ACCESS_READ), np.uint8)
        self.arrays = {
            name: mapped[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (offset, shape, dtype) in layout.datasets.items()
        }


# The open files of this process, the one used longest ago first: a process may have 256 on some machines, and a map
# keeps a descriptor of its own.
MOST_OPEN = 64
_open_files: "OrderedDict[int, weakref.ref[MappedHDF5]]" = OrderedDict()
_opening = threading.Lock()
os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)


class MappedHDF5:
    """The contiguous datasets of one HDF5 file as read-only NumPy views of one memory map.

    The file is parsed at the first access. It is closed when `MOST_OPEN` others were used since, and opened again when
    it is needed; views that were handed out keep it open. Nothing but the path is pickled, so that it is safe under
    fork, spawn and forkserver.

    Parameters
    ----------
    path : an HDF5 file with contiguous, uncompressed datasets (`write_hdf5`).
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._layout: _Layout | None = None
        self._opened: _Open | None = None
        weakref.finalize(self, _open_files.pop, id(self), None)

    def _file(self) -> _Open:
        with _opening:
            if self._opened is None:
                if self._layout is None:
                    self._layout = read_layout(self.path)
                self._opened = _Open(self.path, self._layout)
                _open_files[id(self)] = weakref.ref(self)
                while len(_open_files) > MOST_OPEN:
                    if (oldest := _open_files.popitem(last=False)[1]()) is not None:
                        oldest._opened = None
            else:
                _open_files.move_to_end(id(self))
            return self._opened

    def __getitem__(self, name: str) -> np.ndarray:
        """The dataset `name`, a view of the map; KeyError names what the file has."""
        arrays = self._file().arrays
        if name not in arrays:
            raise KeyError(f"{self.path} has no dataset {name!r}; it has {sorted(arrays)}")
        return arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._file().arrays

    @property
    def attributes(self) -> dict[str, str | int]:
        """The root attributes."""
        self._file()
        return self._layout.attributes

    def row_reader(self, name: str) -> Callable[[int, np.ndarray], None]:
        """``read(first, out)``, which fills `out` (contiguous, of the dataset's dtype) with consecutive rows.

        All axes but the last count rows. Nearly as fast as copying from the map, but what is read doesn't become
        resident memory of this process.
        """
        opened, array = self._file(), self[name]
        start, size = self._layout.datasets[name][0], array.shape[-1] * array.itemsize

        def read(first: int, out: np.ndarray) -> None:
            place = start + first * size
            done = os.preadv(opened.file, (out,), place)
            while done < out.nbytes:
                more = os.preadv(opened.file, (out.reshape(-1).view(np.uint8)[done:],), place + done)
                if not more:
                    raise InputError(
                        f"the file ends inside dataset {name!r}", where=self.path, fix="copy or make the file again"
                    )
                done += more

        return read

    def __getstate__(self) -> dict:
        return {"path": self.path}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["path"])


def open_file(path: Path) -> int:
    """A descriptor of a file that is only read. Raises `InputError` where it can't be had: it isn't damaged then."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        fix = _OPENING.get(error.errno, "check the path and its permissions")
        raise InputError(f"it can't be opened ({error.strerror})", where=path, fix=fix) from error


_MORE_FILES = "raise the number of files that a process may have open, with `ulimit -n`"
_OPENING = {
    errno.ENOENT: "fetch the store again, or make it again",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: _MORE_FILES,
}


def read_layout(path: Path) -> _Layout:
    """Where the datasets of an HDF5 file lie. HDF5 takes no lock on a file object: many network disks have none.

    Raises `InputError` for a file that can't be opened, that is no HDF5 file, that ends inside a dataset or that has
    chunked ones.
    """
    try:
        with open(open_file(path), "rb") as stream, h5py.File(stream, "r") as file:
            # A link may lead to another file.
            own = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            items = {name: item for name in own if isinstance(item := file[name], h5py.Dataset)}
            datasets = {name: (item.id.get_offset(), item.shape, item.dtype) for name, item in items.items()}
            attributes = {name: _plain(value) for name, value in file.attrs.items()}
            size = os.fstat(stream.fileno()).st_size
    except InputError:
        raise
    except Exception as error:  # HDF5 raises whatever a damaged file leads it to
        raise InputError(
            f"not a readable HDF5 file ({error})", where=path, fix="run the stage that makes it again"
        ) from error
    for name, (offset, shape, dtype) in datasets.items():
        length = math.prod(shape or ()) * dtype.itemsize
        if shape is None or dtype.hasobject or (offset is None and length):
            raise InputError(
                f"dataset {name!r} is chunked or not of plain numbers, so it can't be mapped into memory",
                where=path,
                fix="write it with extract.stores.hdf5.write_hdf5",
            )
        if (offset or 0) + length > size or max(shape, default=0) > size:
            raise InputError(f"the file ends inside dataset {name!r}", where=path, fix="copy or make the file again")
        datasets[name] = offset or 0, shape, dtype
    return _Layout(datasets, attributes, size)


def _plain(value: Any) -> str | int:
    """An attribute as Python has it."""
    return value.decode() if isinstance(value, bytes) else value.item() if hasattr(value, "item") else value
