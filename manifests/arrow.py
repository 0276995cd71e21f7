"""Tables on disk: uncompressed Arrow IPC files, mapped into memory, read by rows, trusted once every row was validated.

Equal rows give equal bytes, whatever version of pyarrow writes them: record batches have `ROWS` rows, no metadata.
"""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import pyarrow as pa

from manifests.errors import InputError
from manifests.opening import open_file

ROWS = 16_384  # of a record batch, but for the last one
_OPTIONS = {"metadata_version": pa.ipc.MetadataVersion.V5, "use_legacy_format": False, "compression": None}


@contextmanager
def table_writer(file: IO[bytes], schema: pa.Schema) -> Iterator["TableWriter"]:
    """A writer of the rows of one table to an open file."""
    with pa.ipc.new_file(file, schema, options=pa.ipc.IpcWriteOptions(**_OPTIONS)) as writer:
        rows = TableWriter(writer, schema)
        yield rows
        rows.flush()


class TableWriter:
    """Gathers rows and writes them a record batch at a time."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter, schema: pa.Schema):
        self._writer, self._schema = writer, schema
        self._rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        """One row: a value a column."""
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
            self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
            self._rows = []


class Table:
    """A table of `table_writer`. Opening it reads its footer; `checked` reads all of it.

    Pages that were read go back to the system as soon as another record batch is asked for. So reading a whole table
    takes the memory of one batch.

    Parameters
    ----------
    path : of the file, for messages where there is `content`.
    fix : what to do about a damaged one.
    content : the file's bytes, where they are in memory.

    Raises `InputError` for a file that can't be read, is no Arrow file or holds another table.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, fix: str, content: pa.Buffer | None = None):
        self.path, self._fix, self._lock = Path(path), fix, Lock()
        self._map = None if content is not None else _mapped(self.path, fix)
        self._content = pa.py_buffer(self._map) if content is None else content
        with self._no_damage():
            self._reader = pa.ipc.open_file(self._content)
            self._batches = self._reader.num_record_batches
            found = self._reader.schema
        if not found.equals(schema, check_metadata=True):
            named = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise InputError(f"it has other columns than {named}", where=self.path, fix=fix)
        self._last: tuple[int, pa.RecordBatch | None] = (-1, None)
        self._length = 0
        if self._batches:
            self._length = (self._batches - 1) * ROWS + self._batch(self._batches - 1).num_rows
        if self._length > self._content.size:
            raise InputError(f"it is too short for {self._length:,} rows", where=self.path, fix=fix)

    def __len__(self) -> int:
        return self._length

    def checked(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of its first row, batch) of every record batch, as soon as it has proved to be whole."""
        for number in range(self._batches):
            batch = self._batch(number)
            with self._no_damage():
                batch.validate(full=True)
            if batch.num_rows != min(ROWS, len(self) - number * ROWS) or not batch.num_rows:
                raise InputError(f"record batch {number} has {batch.num_rows} rows", where=self.path, fix=self._fix)
            buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer]
            if not all(self._holds(buffer) for buffer in buffers):
                raise InputError(f"record batch {number} is compressed", where=self.path, fix=self._fix)
            yield number * ROWS, batch
        self.forget()

    def slices(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows `start` to `stop` - 1, as parts of record batches."""
        while start < stop:
            number, at = divmod(start, ROWS)
            part = self._batch(number).slice(at, stop - start)
            yield part
            start += part.num_rows

    def forget(self) -> None:
        """Give the memory of what was read back to the system; it stays readable."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _batch(self, number: int) -> pa.RecordBatch:
        with self._lock:
            last, batch = self._last
            if batch is None or last != number:
                self.forget()
                with self._no_damage():
                    batch = self._reader.get_batch(number)
                self._last = number, batch
            return batch

    def _holds(self, buffer: pa.Buffer) -> bool:
        """Whether a buffer is a part of the file itself, and so neither compressed nor turned round."""
        first = buffer.address - self._content.address
        return buffer.size == 0 or 0 <= first <= first + buffer.size <= self._content.size

    @contextmanager
    def _no_damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # pyarrow raises whatever a damaged file leads it to
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(f"no whole Arrow file ({reason})", where=self.path, fix=self._fix) from error


def present(column: pa.Array) -> np.ndarray:
    """bool: which rows of a column aren't null."""
    bits = column.buffers()[0]
    if bits is None:
        return np.ones(len(column), bool)
    rows = slice(column.offset, column.offset + len(column))
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[rows].astype(bool)


def numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """A column of integers, not copied, with any number where it is null; and where it isn't (`present`).

    pyarrow's own conversion of a column with nulls would cost 45 MB, once a process.
    """
    width = column.type.bit_width // 8
    values = np.frombuffer(column.buffers()[1], f"i{width}", len(column), column.offset * width)
    return values, present(column)


def text_bytes(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a column of text, uint8 ``[B]``, and its offsets, int32 ``[rows + 1]``. Row r lies between offsets r
    and r + 1. Not copied."""
    _, ends, data = column.buffers()
    ends = np.frombuffer(ends, np.int32, len(column) + 1, 4 * column.offset)
    data = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    return data[: ends[-1]], ends


def _mapped(path: Path, fix: str) -> mmap.mmap:
    try:
        with open_file(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"the file can't be read ({error.strerror})", where=path, fix=fix) from error
    except ValueError as error:
        raise InputError("the file is empty", where=path, fix=fix) from error
