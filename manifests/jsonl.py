"""Text from files, whole or by its lines, and JSON, with errors that say where: not UTF-8 (byte and line), not JSON."""

import json
import os
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO

from manifests.errors import InputError
from manifests.opening import MOST_ROW, open_file

_MOST_TEXT = 2**30  # bytes: COCO's captions are 144 MB


def read_utf8(path: Path, *, fix: str = "save the file as UTF-8") -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises InputError for what is no file or larger than 1 GB, and naming byte and line for other bytes than text's.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_TEXT:
            problem = f"{size:,} bytes, and a text that is read as a whole may have {_MOST_TEXT:,}"
            raise InputError(problem, where=path, fix="give a smaller file, or captions as .jsonl, .csv or .tsv")
        data = file.read()
    return _text(data, path, 1, 0, fix).removeprefix("\ufeff")


def read_lines(path: Path, *, fix: str = "save the file as UTF-8") -> Iterator[str]:
    """The lines of a UTF-8 file with their ends ("\\n"), without a byte order mark, one at a time.

    Raises InputError as `read_utf8` does, and for a line of more than `MOST_ROW` bytes.
    """
    return (line for _, line in placed_lines(path, fix=fix))


def placed_lines(path: Path, *, fix: str = "save the file as UTF-8") -> Iterator[tuple[int, str]]:
    """As `read_lines`, each line with the byte at which it begins."""
    for offset, line in _lines(path, fix):
        if isinstance(line, InputError):
            raise line
        yield offset, line


def lines_or_errors(path: Path, *, fix: str = "save the file as UTF-8") -> Iterator[str | InputError]:
    """`read_lines`, with an InputError in the place of a line that is not UTF-8."""
    return (line for _, line in _lines(path, fix))


def _lines(path: Path, fix: str) -> Iterator[tuple[int, str | InputError]]:
    with _opened(path) as file:
        for number, (offset, line) in enumerate(split_lines(file, path), 1):
            try:
                text = _text(line, path, number, offset, fix)
            except InputError as error:
                yield offset, error
            else:
                yield offset, text.removeprefix("\ufeff") if number == 1 else text


def split_lines(file: BinaryIO, path: Path, *, what: str = "line", first: int = 1) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every line of a file, end included.

    Raises InputError for one of more than `MOST_ROW` bytes; messages call it `what` and count from `first`.
    """
    number, offset = first, 0
    while line := file.readline(MOST_ROW + 1):
        if len(line) > MOST_ROW:
            raise InputError(
                f"it is longer than {MOST_ROW >> 20} MB, the most that is read at once",
                where=f"{path} {what} {number}",
                fix="check that the file is whole and of this format",
            )
        yield offset, line
        number, offset = number + 1, offset + len(line)


def parse_json(
    text: str, *, path: Path, fix: str, line: int | None = None, object_hook: Callable[[dict], Any] | None = None
) -> Any:
    """The value of a JSON text: a whole file, or its line number `line`. Raises InputError naming line and column.

    `object_hook` replaces each object as soon as it is parsed, as in `json.loads`.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON ({error.msg})", where=f"{path} line {line or error.lineno} column {error.colno}", fix=fix
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=f"{path} line {line or 1}", fix=fix) from None


def read_rows(path: Path, *, fix: str) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of every line of a JSON Lines file that isn't blank."""
    for number, line in enumerate(read_lines(path), 1):
        if (value := parse_row(line, path=path, fix=fix, line=number)) is not None:
            yield number, value


def parse_row(text: str, *, path: Path, fix: str, line: int) -> dict | None:
    """The object of a line of a JSON Lines file; None of a blank one."""
    if not text.strip():
        return None
    value = parse_json(text.removesuffix("\n"), path=path, fix=fix, line=line)
    if not isinstance(value, dict):
        raise InputError("the line is not a JSON object", where=f"{path} line {line}", fix=fix)
    return value


def _opened(path: Path) -> BinaryIO:
    try:
        return open_file(path)
    except OSError as error:
        raise InputError(f"the file can't be read ({error.strerror})", where=path, fix="check the path") from error


def _text(data: bytes, path: Path, line: int, offset: int, fix: str) -> str:
    """Bytes that begin at byte `offset`, in `line`, as text."""
    place = data.find(0)
    try:
        text = data.decode("utf-8") if place < 0 else ""
    except UnicodeDecodeError as error:
        place = error.start
    if place < 0:
        return text
    message = "is of no text" if not data[place] else "is not UTF-8"
    line += data.count(b"\n", 0, place)
    raise InputError(f"byte {offset + place} (0x{data[place]:02x}) {message}", where=f"{path} line {line}", fix=fix)


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError(f"{digits:.20} is too large a number")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
