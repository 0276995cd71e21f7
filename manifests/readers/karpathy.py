"""Karpathy's JSON: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json, and the demo's scenes.

Source: Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments" (CVPR 2015), whose splits the field reports on. An entry
of "images" has filename, filepath (optional folder), split (train, restval, val, test), cocoid (optional), imgid and
sentences. A sentence has raw, and sentid where images are COCO's. Our own keys are an image's objects and a sentence's
phrases.
"""

import re
from pathlib import Path
from typing import Any

from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.names import is_caption_id
from manifests.readers import READERS, Items, Preview, Reader
from manifests.source import LeftOut, SourceCaption, SourceImage

_FIX = "give Karpathy's JSON, as published; docs/parameters.md has other kinds of captions files"


@READERS.add("karpathy")
class Karpathy(Reader):
    """An image's id is its cocoid where it has one, else None; "restval" is "train"."""

    title = "Karpathy's JSON"
    layout = '{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog."}]}]}'

    @staticmethod
    def recognises(preview: Preview) -> bool:
        return preview.head.startswith("{") and bool(re.search(r'"(sentences|filename)"\s*:', preview.head))

    @staticmethod
    def read(path: Path) -> Items:
        data = parse_json(read_utf8(path), path=path, fix=_FIX, object_hook=_without_tokens)
        images = data.get("images") if isinstance(data, dict) else None
        if not isinstance(images, list):
            raise InputError("there is no list 'images'", where=path, fix=_FIX)
        for number, image in enumerate(images):
            try:
                yield _image(image, path, f"images[{number}]")
            except InputError as error:
                yield LeftOut("row", error)


def _image(image: Any, path: Path, row: str) -> SourceImage:
    _check(image, dict, path, row)
    filename, split = _take(image, "filename", str, path, row), _take(image, "split", str, path, row)
    folder = _take(image, "filepath", str, path, row) if "filepath" in image else ""
    cocoid, imgid = image.get("cocoid"), image.get("imgid")
    if cocoid is not None and (isinstance(cocoid, bool) or not isinstance(cocoid, int | str)):
        raise InputError(f"'cocoid' must be a whole number, not {cocoid!r}", where=f"{path} {row}", fix=_FIX)
    captions = []
    for index, sentence in enumerate(_take(image, "sentences", list, path, row)):
        place = f"{row}.sentences[{index}]"
        _check(sentence, dict, path, place)
        sentid = sentence.get("sentid") if type(cocoid) is int else None
        if sentid is not None and not is_caption_id(sentid):
            raise InputError(f"'sentid' must be a whole number, not {sentid!r}", where=f"{path} {place}", fix=_FIX)
        text = _take(sentence, "raw", str, path, place)
        captions.append(SourceCaption(place, text, sentence.get("phrases"), sentid))
    return SourceImage(
        row=row,
        id=str(cocoid) if cocoid is not None else None,
        path=f"{folder}/{filename}" if folder else filename,
        split=split,
        captions=tuple(captions),
        objects=image.get("objects"),
        imgid=imgid if type(imgid) is int else None,
    )


def _without_tokens(value: dict) -> dict:
    """Drops, while parsing, the word lists (620,000 in COCO's file) that would take most of the memory."""
    value.pop("tokens", None)
    value.pop("sentids", None)
    return value


def _take(value: dict, key: str, kind: type, path: Path, row: str) -> Any:
    if key not in value:
        raise InputError(f"key {key!r} is missing", where=f"{path} {row}", fix=_FIX)
    return _check(value[key], kind, path, f"{row}.{key}")


def _check(value: Any, kind: type, path: Path, row: str) -> Any:
    if not isinstance(value, kind):
        name = {str: "text", list: "a list", dict: "an object"}[kind]
        raise InputError(f"this must be {name}, not {value!r}", where=f"{path} {row}", fix=_FIX)
    return value
