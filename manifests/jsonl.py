"""JSON text from files, with errors that say where: not UTF-8 (byte and line), not JSON (line and column)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from manifests.errors import InputError


def read_utf8(path: Path, *, fix: str = "save the file as UTF-8") -> str:
    """The text of a UTF-8 file, without a byte order mark. Raises InputError naming byte and line."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"the file can't be read ({error.strerror})", where=path, fix="check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8", where=f"{path} line {line}", fix=fix
        ) from None


def parse_json(
    text: str, *, path: Path, fix: str, line: int | None = None, object_hook: Callable[[dict], Any] | None = None
) -> Any:
    """The value of a JSON text: a whole file, or its line number `line`. Raises InputError naming line and column.

    `object_hook` replaces each object as soon as it is parsed, as in `json.loads`.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_hook=object_hook)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON ({error.msg})", where=f"{path} line {line or error.lineno} column {error.colno}", fix=fix
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON ({error})", where=f"{path} line {line or 1}", fix=fix) from None


def read_rows(path: Path, *, fix: str) -> Iterator[tuple[int, dict]]:
    """(line number from 1, object) of every line of a JSON Lines file that isn't blank."""
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            value = parse_json(line, path=path, fix=fix, line=number)
            if not isinstance(value, dict):
                raise InputError("the line is not a JSON object", where=f"{path} line {number}", fix=fix)
            yield number, value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
