"""A folder of pictures, with a text beside each picture that has captions, a line each: `a.txt` beside `a.jpg`, or
`a.jpg.txt`, or `a.caption`.

Where all folders of the first level are called as splits are (train, val, test), they are. Pictures without a text have
no captions: a folder of nothing else can be searched with a picture.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from manifests.columns import SPLIT_OF
from manifests.errors import InputError
from manifests.jsonl import read_lines
from manifests.readers import READERS, Items, Preview, Reader
from manifests.source import LeftOut, SourceCaption, SourceImage

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


@READERS.add("pictures")
class Pictures(Reader):
    """An image is named by its path; hidden files and folders are left alone."""

    title = "a folder of pictures"
    layout = "a.jpg with its captions in a.txt"
    rank = 1

    @staticmethod
    def recognises(preview: Preview) -> bool:
        return preview.is_folder and next(_pictures(preview.path), None) is not None

    @staticmethod
    def read(path: Path) -> Items:
        found = list(_pictures(path))
        tops = {PurePosixPath(name).parts[0].lower() if "/" in name else "" for name in found}
        splits = SPLIT_OF if tops <= SPLIT_OF.keys() else {}
        for name in found:
            row = next((each for each in _texts(name) if (path / each).is_file()), None)
            try:
                lines = list(enumerate(read_lines(path / row), 1)) if row else []
            except InputError as error:
                yield LeftOut("row", error)
                lines = []
            captions = tuple(SourceCaption(f"{row} line {n}", line.strip()) for n, line in lines if line.strip())
            yield SourceImage(name, None, name, splits.get(PurePosixPath(name).parts[0].lower()), captions)


def _texts(name: str) -> tuple[str, ...]:
    """Where the captions of a picture may be."""
    picture = PurePosixPath(name)
    return str(picture.with_suffix(".txt")), f"{name}.txt", str(picture.with_suffix(".caption"))


def _pictures(root: Path) -> Iterator[str]:
    """Paths of the pictures below a folder, in order."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()
