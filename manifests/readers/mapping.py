"""One object of id and captions: {"9": ["A dog.", ...]}, in JSON or as Oscar's `{split}_captions.pt`.

A caption is a text, or an object with a "caption"; Oscar keeps an image's captions as the JSON text of their list. The
file is read without running what a pickle asks for (`manifests.unpickle`).
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.opening import MOST_ROW, read_file
from manifests.readers import READERS, Items, Preview, Reader
from manifests.source import LeftOut, SourceCaption, SourceImage
from manifests.unpickle import Refused, Unpickler

_FIX = 'write an object of {"id": ["caption", ...], ...}'
_TORCH = (".pt", ".pth")


@READERS.add("mapping")
class Mapping(Reader):
    """An image is named by its key."""

    title = "an object of ids and captions"
    layout = '{"9": ["A dog.", "A small dog."]}'

    @staticmethod
    def recognises(preview: Preview) -> bool:
        if preview.suffix in _TORCH:
            return not preview.is_folder
        return bool(re.match(r'\{\s*"[^"\\]*"\s*:\s*(\[\s*("|\{[^{}]*"caption")|"\[)', preview.head)) and not re.match(
            r'\{\s*"(images|annotations|info|objects|sentences)"', preview.head
        )

    @staticmethod
    def read(path: Path) -> Items:
        saved = path.suffix.lower() in _TORCH
        value = _unpickled(path) if saved else parse_json(read_utf8(path), path=path, fix=_FIX)
        if not isinstance(value, dict):
            raise InputError("not an object of ids and captions", where=path, fix=_FIX)
        for key, captions in value.items():
            row = f"[{key!r}]"
            try:
                texts = _texts(captions, path, row)
            except InputError as error:
                yield LeftOut("row", error, str(key))
                continue
            own = tuple(SourceCaption(f"{row}[{k}]", text) for k, text in enumerate(texts))
            yield SourceImage(row, str(key), str(key), None, own)


def _texts(captions: Any, path: Path, row: str) -> list[str]:
    if isinstance(captions, str) and captions.startswith("["):
        captions = parse_json(captions, path=path, fix=_FIX)
    captions = [captions] if isinstance(captions, str) else captions
    found = (
        [item.get("caption") if isinstance(item, dict) else item for item in captions or ()]
        if isinstance(captions, list)
        else [None]
    )
    if not all(isinstance(text, str) for text in found):
        raise InputError(f"it must have a list of texts, not {captions!r}", where=f"{path} {row}", fix=_FIX)
    return found


def _unpickled(path: Path) -> Any:
    """What `torch.save` wrote of plain values, today's archive or the older row of pickles."""
    try:
        data = read_file(path)
        if not zipfile.is_zipfile(io.BytesIO(data)):
            *_, value = _all(data)
            return value
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as member:
                return Unpickler(io.BytesIO(member.read(MOST_ROW * 16))).load()
    except OSError as error:
        raise InputError(f"the file can't be read ({error.strerror})", where=path, fix="check the path") from error
    except Exception as error:
        raise InputError(
            f"no captions that torch saved ({error})", where=path, fix="save them as JSON: an object of id and captions"
        ) from None


def _all(data: bytes) -> Iterator[Any]:
    """The values of pickles that follow each other; older files have the captions last."""
    file = io.BytesIO(data)
    reader = Unpickler(file)
    yield reader.load()
    while file.tell() < len(data):
        try:
            yield reader.load()
        except Refused:  # the lengths of tensors, of which there is none, aren't a pickle
            return
