"""Writes captions in Karpathy's JSON, which nearly every published loader reads (`manifests.karpathy` reads it)."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from manifests.files import canonical_json, write_text
from manifests.schema import CaptionedImage


def write(path: Path, name: str, rows: Sequence[CaptionedImage]) -> None:
    """Write the images and captions of a manifest, in its order.

    An id that isn't the file name without its suffix becomes the `cocoid`, a number where it is one. `tokens` are the
    lower-cased runs of letters, digits and apostrophes.
    """
    lines, sentid = [], 0
    for imgid, row in enumerate(rows):
        at = PurePosixPath(row.path)
        sentences = []
        for raw in row.captions:
            tokens = re.findall(r"[\w']+", raw.lower())
            sentences.append({"raw": raw, "tokens": tokens, "imgid": imgid, "sentid": sentid + len(sentences)})
        image = {
            "filename": at.name,
            "imgid": imgid,
            "split": row.split,
            "sentids": [sentence["sentid"] for sentence in sentences],
            "sentences": sentences,
        }
        sentid += len(sentences)
        if len(at.parts) > 1:
            image["filepath"] = str(at.parent)
        if at.stem != row.id:
            image["cocoid"] = int(row.id) if re.fullmatch(r"0|[1-9]\d*", row.id, re.ASCII) else row.id
        lines.append(canonical_json(image))
    body = ",\n".join(lines)
    write_text(path, f'{{"dataset":{canonical_json(name)},"images":[\n{body}\n]}}\n')
