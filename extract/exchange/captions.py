"""The captions of imported regions, where the regions' format has none: by the kind of file.

.json   Karpathy's (`manifests.karpathy`), or a list of {"image_id", "caption"} as Oscar writes it
.csv .tsv .jsonl   as `manifests.folder` says
folder  Oscar's `{split}_captions.json` or `{split}_caption.json`, a list each; minival is val
"""

from collections.abc import Iterator
from pathlib import Path

from manifests import folder, karpathy
from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.opening import open_file
from manifests.source import SourceCaption, SourceImage

_SPLITS = {"train": "train", "restval": "train", "val": "val", "minival": "val", "dev": "val", "test": "test"}
_FIX = 'give a list of {"image_id": ..., "caption": ...}, or Karpathy\'s JSON'


def read(path: Path) -> Iterator[SourceImage]:
    """The images of a captions file in its order. Raises InputError with file, row and fix."""
    path = Path(path)
    if path.is_dir():
        yield from _read_folder(path)
    elif path.suffix.lower() != ".json":
        yield from folder.read(path)
    elif _begins_with(path, b"["):
        yield from _read_list(path, None, "")
    else:
        yield from karpathy.read(path)


def _read_folder(path: Path) -> Iterator[SourceImage]:
    files = [
        (file, split)
        for name, split in _SPLITS.items()
        for end in ("captions", "caption")
        if (file := path / f"{name}_{end}.json").exists()
    ]
    if not files:
        raise InputError(
            f"there are none of {', '.join(f'{name}_captions.json' for name in _SPLITS)}",
            where=path,
            fix="give the captions file itself",
        )
    for file, split in files:
        yield from _read_list(file, split, f"{file.name} ")


def _read_list(path: Path, split: str | None, prefix: str) -> Iterator[SourceImage]:
    items = parse_json(read_utf8(path), path=path, fix=_FIX)
    if not isinstance(items, list):
        raise InputError("not a list", where=path, fix=_FIX)
    images: dict[str, list[SourceCaption]] = {}
    for number, item in enumerate(items):
        row = f"{prefix}[{number}]"
        image, text = (item.get(key) for key in ("image_id", "caption")) if isinstance(item, dict) else (None, None)
        if isinstance(image, bool) or not isinstance(image, str | int) or not isinstance(text, str):
            raise InputError("not an image_id and a caption", where=f"{path} [{number}]", fix=_FIX)
        images.setdefault(str(image), []).append(SourceCaption(row, text))
    for image, captions in images.items():
        yield SourceImage(captions[0].row, image, image, split, tuple(captions))


def _begins_with(path: Path, mark: bytes) -> bool:
    try:
        with open_file(path) as file:
            return file.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(mark)
    except OSError as error:
        raise InputError(f"can't be read ({error.strerror})", where=path, fix="check `source.captions`") from error
