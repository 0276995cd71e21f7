"""A folder of pictures with Karpathy's JSON, and the same captions as everybody else publishes them."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.columns import SPLIT_OF

Rows = list[tuple[str, str, list[str]]]
"""Path, split and captions of each picture."""


@dataclass(frozen=True)
class Brought:
    """What somebody has: the options of `selfalign add`, and what is known of it.

    reader : the name of the reader that takes it.
    splits : whether it says which picture is in which split.
    """

    images: Path
    captions: Path | None
    reader: str
    splits: bool = False

    @property
    def options(self) -> list[str]:
        return ["--images", str(self.images), *(["--captions", str(self.captions)] if self.captions else [])]


def rows_of(pictures: Path, name: str = "captions.json") -> Rows:
    """The pictures of a folder, whose Karpathy's JSON is beside them."""
    images = json.loads((pictures / name).read_text(encoding="utf-8"))["images"]
    return [(i["filename"], SPLIT_OF[i["split"]], [" ".join(s["raw"].split()) for s in i["sentences"]]) for i in images]


def _pairs(rows: Rows) -> list[tuple[str, str]]:
    return [(name, text) for name, _, texts in rows for text in texts]


def _json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def _text(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def _karpathy(rows: Rows, pictures: Path, out: Path) -> Brought:
    images = [{"filename": n, "split": s, "sentences": [{"raw": t} for t in texts]} for n, s, texts in rows]
    return Brought(pictures, _json(out / "dataset.json", {"images": images}), "karpathy", True)


def _coco(rows: Rows, pictures: Path, out: Path) -> Brought:
    images = [{"id": number, "file_name": name} for number, (name, _, _) in enumerate(rows)]
    captions = [(number, text) for number, (_, _, texts) in enumerate(rows) for text in texts]
    annotations = [{"id": 7 * k, "image_id": number, "caption": text} for k, (number, text) in enumerate(captions)]
    return Brought(pictures, _json(out / "captions.json", {"annotations": annotations, "images": images}), "coco")


def _coco_by_split(rows: Rows, pictures: Path, out: Path) -> Brought:
    """`annotations/captions_train2014.json` beside `train2014/`, as COCO unpacks."""
    for split in ("train", "val", "test"):
        own = [(name, texts) for name, other, texts in rows if other == split]
        (out / "coco" / f"{split}2014").mkdir(parents=True)
        for name, _ in own:
            shutil.copy(pictures / name, out / "coco" / f"{split}2014")
        ids = {name: number for number, (name, _, _) in enumerate(rows)}
        images = [{"id": ids[name], "file_name": name} for name, _ in own]
        annotations = [{"image_id": ids[name], "caption": text} for name, texts in own for text in texts]
        value = {"images": images, "annotations": annotations}
        _json(out / "coco" / "annotations" / f"captions_{split}2014.json", value)
    return Brought(out / "coco", out / "coco" / "annotations", "splits", True)


def _flickr(rows: Rows, pictures: Path, out: Path) -> Brought:
    lines = [f"{name}#{k}\t{text}" for name, _, texts in rows for k, text in enumerate(texts)]
    return Brought(pictures, _text(out / "results.token", lines), "flickr")


def _kaggle(rows: Rows, pictures: Path, out: Path) -> Brought:
    lines = ["image_name| comment_number| comment", *(f"{name}| 0| {text}" for name, text in _pairs(rows))]
    return Brought(pictures, _text(out / "results.csv", lines), "folder")


def _csv(rows: Rows, pictures: Path, out: Path) -> Brought:
    with open(out / "captions.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(("Image", "Caption", "Split"))
        table.writerows((name, text, split) for name, split, texts in rows for text in texts)
    return Brought(pictures, out / "captions.csv", "folder", True)


def _metadata(rows: Rows, pictures: Path, out: Path) -> Brought:
    """Hugging Face's folder: the file lies among the pictures, and is found there."""
    folder = _copied(rows, pictures, out / "imagefolder")
    _text(folder / "metadata.jsonl", [json.dumps({"file_name": n, "text": t}) for n, t in _pairs(rows)])
    return Brought(folder, None, "splits")


def _beside(rows: Rows, pictures: Path, out: Path) -> Brought:
    folder = _copied(rows, pictures, out / "beside")
    for name, _, texts in rows:
        _text((folder / name).with_suffix(".txt"), texts)
    return Brought(folder, None, "pictures")


def _shards(rows: Rows, pictures: Path, out: Path) -> Brought:
    """Two shards, a caption a sample; a picture with more captions is there as often."""
    (out / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(out / "shards" / f"{shard:05d}.tar", "w") as tar:
            for number, (name, _, texts) in list(enumerate(rows))[shard::2]:
                key = f"{shard:05d}{number:04d}"
                facts = json.dumps({"caption": texts[0], "key": key, "status": "success"}).encode()
                content = {"jpg": (pictures / name).read_bytes(), "json": facts, "txt": texts[0].encode()}
                for suffix, data in content.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return Brought(out / "shards", None, "img2dataset")


def _blip(rows: Rows, pictures: Path, out: Path) -> Brought:
    """A list a split: an object a caption in training, an object an image in the others."""
    for split in ("train", "val", "test"):
        own = [(name, texts) for name, other, texts in rows if other == split]
        found = [{"image": name, "caption": texts} for name, texts in own]
        if split == "train":
            found = [{"image": name, "caption": text, "image_id": name} for name, texts in own for text in texts]
        _json(out / "blip" / f"photographs_{split}.json", found)
    return Brought(pictures, out / "blip", "splits", True)


def _reid(rows: Rows, pictures: Path, out: Path) -> Brought:
    """CUHK-PEDES: `id` is a person's."""
    persons = [{"split": s, "captions": texts, "file_path": n, "id": len(texts)} for n, s, texts in rows]
    return Brought(pictures, _json(out / "reid_raw.json", persons), "image-list", True)


def _mapping(rows: Rows, pictures: Path, out: Path) -> Brought:
    return Brought(pictures, _json(out / "captions.json", {name: texts for name, _, texts in rows}), "mapping")


def _copied(rows: Rows, pictures: Path, folder: Path) -> Path:
    folder.mkdir()
    for name, _, _ in rows:
        shutil.copy(pictures / name, folder)
    return folder


KINDS: dict[str, Callable[[Rows, Path, Path], Brought]] = {
    "Karpathy's JSON": _karpathy,
    "COCO's annotations": _coco,
    "COCO's folder": _coco_by_split,
    "Flickr's token file": _flickr,
    "Kaggle's table": _kaggle,
    "CSV": _csv,
    "metadata.jsonl": _metadata,
    "texts beside": _beside,
    "tar shards": _shards,
    "BLIP's lists": _blip,
    "CUHK-PEDES": _reid,
    "mapping": _mapping,
}


def bring(kind: str, pictures: Path, out: Path, name: str = "captions.json") -> Brought:
    """Write the captions of a folder of pictures as one of `KINDS` has them, below `out`."""
    return KINDS[kind](rows_of(pictures, name), pictures, out)
