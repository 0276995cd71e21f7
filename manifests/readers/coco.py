"""COCO's own annotations: captions_train2014.json, captions_val2017.json and whatever has their layout.

Keys read: images[].id, .file_name; annotations[].image_id, .caption, .id. Source: Chen et al., "Microsoft COCO
Captions" (2015). The file has no splits; a folder of such files has them by name (`manifests.readers.splits`).
"""

import re
from pathlib import Path

from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.names import is_caption_id
from manifests.readers import READERS, Items, Preview, Reader
from manifests.source import LeftOut, SourceCaption, SourceImage


@READERS.add("coco")
class Coco(Reader):
    """An image's id is COCO's, as a number or a text; a caption keeps its own."""

    title = "COCO's annotations"
    layout = (
        '{"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 9, "caption": "A dog."}]}'
    )

    @staticmethod
    def recognises(preview: Preview) -> bool:
        known = re.search(r'"(annotations|images)"\s*:\s*\[', preview.head)
        inside = re.search(r'"(file_name|image_id)"\s*:', preview.head)
        other = re.search(r'"sentences"\s*:', preview.head)
        return preview.head.startswith("{") and bool(known and inside) and not other

    @staticmethod
    def read(path: Path) -> Items:
        data = parse_json(read_utf8(path), path=path, fix=f"write {Coco.layout}")
        lists = [data.get(key) if isinstance(data, dict) else None for key in ("images", "annotations")]
        for key, found in zip(("images", "annotations"), lists, strict=True):
            if not isinstance(found, list):
                raise InputError(f"there is no list {key!r}", where=path, fix=f"write {Coco.layout}")
        images, annotations = lists
        known: dict[str, list[SourceCaption]] = {}
        for number, image in enumerate(images):
            id, name = (image.get(key) for key in ("id", "file_name")) if isinstance(image, dict) else (None, None)
            if isinstance(id, bool) or not isinstance(id, int | str) or not isinstance(name, str):
                yield _bad("not an id and a file_name", path, f"images[{number}]")
            else:
                known.setdefault(str(id), [])
        for number, item in enumerate(annotations):
            row = f"annotations[{number}]"
            image, text, id = (
                (item.get(key) for key in ("image_id", "caption", "id")) if isinstance(item, dict) else ((None,) * 3)
            )
            if not isinstance(text, str) or not isinstance(image, int | str):
                keys = ", ".join(map(str, item))[:80] if isinstance(item, dict) else repr(item)[:80]
                if number == 0:
                    message = f"its annotations have {keys}, and no caption"
                    raise InputError(message, where=f"{path} {row}", fix="give the file of captions: captions_*.json")
                yield _bad(f"not an image_id and a caption, but {keys}", path, row)
            elif str(image) not in known:
                yield _bad(f"no image has the id {image!r}", path, row)
            else:
                known[str(image)].append(SourceCaption(row, text, None, id if is_caption_id(id) else None))
        for number, image in enumerate(images):
            if isinstance(image, dict) and (captions := known.get(str(image.get("id")))) is not None:
                name = image.get("file_name")
                if isinstance(name, str):
                    yield SourceImage(f"images[{number}]", str(image["id"]), name, None, tuple(captions))


def _bad(what: str, path: Path, row: str) -> LeftOut:
    return LeftOut("row", InputError(what, where=f"{path} {row}", fix=f"write {Coco.layout}"))
