"""Tar shards as img2dataset writes them: `KEY.jpg`, `KEY.txt`, `KEY.json` follow each other in `00000.tar`.

Pictures stay in the shards: `00000.tar/KEY.jpg` is a picture's path from the folder of the shards. That folder is the
image root too, and `manifests.opening` reads the picture there. A sample's caption is its `.txt`, else its `.json`'s
"caption". Of an archive that is cut off, all but the last sample are taken.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from manifests.errors import InputError
from manifests.jsonl import parse_json
from manifests.opening import MOST_ROW, open_file
from manifests.readers import READERS, Items, Preview, Reader
from manifests.readers.pictures import SUFFIXES
from manifests.source import LeftOut, SourceCaption, SourceImage

_FIX = "fetch the shard again, or remove it"


@READERS.add("img2dataset")
class Img2dataset(Reader):
    """An image is named by its key, which img2dataset makes unique over all shards; where it isn't, by its path."""

    title = "img2dataset's tar shards"
    layout = "00000.tar with KEY.jpg, KEY.txt, KEY.json"

    @staticmethod
    def recognises(preview: Preview) -> bool:
        shard = next((preview.path / name for name in preview.names if name.endswith(".tar")), None)
        if shard is None:
            return False
        try:
            return any(name.lower().endswith(SUFFIXES) for name, _ in zip(_names(shard), range(6), strict=False))
        except InputError:
            return False

    @staticmethod
    def read(path: Path) -> Items:
        shards = sorted(path.glob("*.tar")) if path.is_dir() else []
        if not shards:
            raise InputError("there is no *.tar", where=path, fix="give the folder of img2dataset's shards")
        found: list[SourceImage] = []
        for shard in shards:
            try:
                for item in _shard(shard):
                    if isinstance(item, LeftOut):
                        yield item
                    else:
                        found.append(item)
            except InputError as error:
                yield LeftOut("row", error)
        keys = Counter(image.id for image in found)
        yield from (image if keys[image.id] == 1 else replace(image, id=None) for image in found)


def _names(shard: Path) -> Iterator[str]:
    with _opened(shard) as archive:
        for member in archive:
            yield member.name


def _shard(shard: Path) -> Items:
    pictures: dict[str, str] = {}
    texts: dict[str, dict[str, bytes]] = {}
    with _opened(shard) as archive:
        try:
            for member in archive:
                key, _, suffix = member.name.rpartition(".")
                if member.isfile() and f".{suffix.lower()}" in SUFFIXES:
                    pictures[key] = member.name
                elif member.isfile() and suffix in ("txt", "json") and member.size <= MOST_ROW:
                    texts.setdefault(key, {})[suffix] = archive.extractfile(member).read()
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"not a whole tar archive ({error})", where=shard, fix=_FIX) from None
    if not _ends(shard):
        message = "the archive is cut off: it doesn't end with zeros"
        yield LeftOut("row", InputError(message, where=f"{shard} row {len(pictures)}", fix=_FIX))
        last = next(reversed(pictures), None)
        pictures = {key: name for key, name in pictures.items() if key != last}
    for key, name in pictures.items():
        row, own = f"{shard.name} {name}", texts.get(key, {})
        try:
            by_suffix = {suffix: _text(content, f"{shard} {key}.{suffix}") for suffix, content in own.items()}
            facts = parse_json(by_suffix["json"], path=shard / f"{key}.json", fix=_FIX) if "json" in by_suffix else {}
        except InputError as error:
            yield LeftOut("row", error, key)
            continue
        text = by_suffix.get("txt", facts.get("caption") if isinstance(facts, dict) else None)
        captions = (SourceCaption(row, text.strip()),) if isinstance(text, str) and text.strip() else ()
        yield SourceImage(row, key, f"{shard.name}/{name}", None, captions)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"byte {error.start} (0x{content[error.start]:02x}) is not UTF-8"
        raise InputError(message, where=where, fix="write the texts as UTF-8, or remove the sample") from None


def _ends(shard: Path) -> bool:
    """Whether a file ends as an archive does, with two blocks of zeros."""
    with open_file(shard) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return size % tarfile.BLOCKSIZE == 0 and not file.read().strip(b"\0")


def _opened(shard: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=open_file(shard), mode="r:")
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"not a tar archive ({error})", where=shard, fix=_FIX) from None
