"""A folder of captions files, one a split by its name: Oscar's `{split}_captions.json` or `.pt`, COCO's
`captions_train2014.json`, ALBEF's `flickr30k_test.json`, `train.csv`; Hugging Face's `train/metadata.jsonl`.

Where names have "caption" in them, the others are left alone. A folder's or a COCO file's pictures lie in a folder of
that name (`train/`, `train2014/`) below the image root. A folder with one `metadata` file has no splits.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from manifests.columns import SPLIT_OF
from manifests.errors import InputError
from manifests.readers import READERS, Items, Preview, Reader, kind_of
from manifests.source import LeftOut, SourceImage

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".pt", ".token")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_COCO = re.compile(r"captions_((?:train|val|test)\d{4})\.json")


@READERS.add("splits")
class Splits(Reader):
    """Files of any other kind; their own splits, where they have some, must not contradict their names."""

    title = "a folder with a captions file a split"
    layout = "train.csv, val.csv and test.csv"

    @staticmethod
    def recognises(preview: Preview) -> bool:
        return preview.is_folder and bool(_files(preview))

    @staticmethod
    def read(path: Path) -> Items:
        files = _files(Preview.at(path))
        if not files:
            raise InputError(
                "there is no captions file with a split in its name, such as train_captions.json",
                where=path,
                fix="give the captions file itself",
            )
        for file, split, folder in files:
            for item in kind_of(file).read(file):
                yield item if isinstance(item, LeftOut) else _of_split(item, file.relative_to(path), split, folder)


def _of_split(image: SourceImage, file: Path, split: str | None, folder: str | None) -> SourceImage:
    own = image.split if split is None else split
    at = f"{folder}/{image.path}" if folder else image.path
    captions = tuple(replace(caption, row=f"{file} {caption.row}") for caption in image.captions)
    return replace(image, row=f"{file} {image.row}", path=at, split=own, captions=captions)


def _files(preview: Preview) -> list[tuple[Path, str | None, str | None]]:
    """Captions files of a folder, each with its split and the folder of its pictures, train before val before test."""
    metadata = [name for name in _METADATA if name in preview.names]
    if metadata:
        return [(preview.path / metadata[0], None, None)]
    found = list(_metadata_of_folders(preview))
    if not found:
        names = [name for name in preview.names if name.lower().endswith(_SUFFIXES)]
        captioned = [name for name in names if "caption" in name.lower()]
        for name in captioned or names:
            if split := _split_of(name):
                pictures = _COCO.fullmatch(name)
                found.append((preview.path / name, split, pictures[1] if pictures else None))
    return sorted(found, key=lambda file: (["train", "val", "test"].index(file[1]), file[0].name))


def _metadata_of_folders(preview: Preview) -> Iterator[tuple[Path, str, str]]:
    for name in preview.names:
        for metadata in _METADATA:
            if (file := preview.path / name / metadata).is_file() and (split := SPLIT_OF.get(name.lower())):
                yield file, split, name


def _split_of(name: str) -> str | None:
    """The split that a file's name tells: of train_captions.json, captions_val2014.json, coco_karpathy_test.json."""
    words = [re.sub(r"\d+k?$", "", word) for word in re.split(r"[^A-Za-z0-9]+", Path(name).stem.lower())]
    found = {SPLIT_OF[word] for word in words if word in SPLIT_OF}
    return found.pop() if len(found) == 1 else None
