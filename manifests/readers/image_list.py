"""Lists of objects in JSON: BLIP's and ALBEF's (image, caption), CUHK-PEDES and its like (file_path, captions, split),
Oscar's (image_id, caption).

Sources: Li et al., "BLIP" (ICML 2022) and "ALBEF" (NeurIPS 2021). Li et al., "Person Search with Natural Language
Description" (CVPR 2017): `id` is a person's. Li et al., "Oscar" (ECCV 2020): `id` is a caption's.
"""

import re
from pathlib import Path

from manifests.columns import Gathered, roles
from manifests.errors import InputError
from manifests.jsonl import parse_json, read_utf8
from manifests.readers import READERS, Items, Preview, Reader
from manifests.readers.folder import of_object
from manifests.source import LeftOut

_FIX = 'write a list of {"image": "a.jpg", "caption": "..."}, with "split" if you like'
_IDS = ("image_id", "img_id", "cocoid", "key")


@READERS.add("image-list")
class ImageList(Reader):
    """An image is named by its path, or else by its image_id."""

    title = "a list of images and captions"
    layout = '[{"image": "a.jpg", "caption": "A dog."}]'

    @staticmethod
    def recognises(preview: Preview) -> bool:
        return bool(re.match(r"\[\s*\{", preview.head)) and bool(ImageList._keys(preview.head))

    @staticmethod
    def _keys(head: str) -> dict[str, str]:
        names = dict.fromkeys(re.findall(r'"([^"\\]{1,40})"\s*:', head))
        try:
            return roles(names, "", "", ids=_IDS)
        except InputError:
            return {}

    @staticmethod
    def columns(path: Path) -> dict[str, str]:
        """Role -> the name of its key."""
        found = ImageList._keys(Preview.at(path).head)
        return {role: name for role, name in found.items() if role != "id" or "image" not in found}

    @staticmethod
    def read(path: Path) -> Items:
        items = parse_json(read_utf8(path), path=path, fix=_FIX)
        if not isinstance(items, list):
            raise InputError("not a list", where=path, fix=_FIX)
        found = Gathered(path)
        for number, item in enumerate(items):
            row = f"[{number}]"
            try:
                if not isinstance(item, dict):
                    raise InputError("not an object of an image and a caption", where=f"{path} {row}", fix=_FIX)
                fields = of_object(item, path, row, _FIX, ids=_IDS)
                own = fields["id"] if fields["image"] == fields["id"] else None
                yield from found.add(row, **{**fields, "id": own})
            except InputError as error:
                yield LeftOut("row", error)
        yield from found.all()
