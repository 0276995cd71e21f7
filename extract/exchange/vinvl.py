"""VinVL's files, which Oscar and ALADIN read: `features.tsv` = id, num_boxes, base64 float32 ``[R, D]``.

D is 2,048, or 2,054 with six box terms appended; all columns are features here. Boxes, sizes and classes are in
`predictions.tsv` = id, JSON with image_h, image_w, objects[class, rect, conf], rect absolute (x1, y1, x2, y2), one an
object in the features' order. `features.lineidx` (byte offset of each row) and `imageid2idx.json` (id -> row) are
checked where they are there. Source: Zhang et al., "VinVL" (CVPR 2021).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from extract.exchange import tsv
from extract.exchange.source import Bytes, Found, Record, Source
from extract.stores.regions import Regions, RegionStore
from manifests.errors import InputError
from manifests.files import canonical_json, write_text
from manifests.jsonl import parse_json, read_utf8
from manifests.schema import ImageRow

_FEATURES, _PREDICTIONS, _LINES, _ROWS = "features.tsv", "predictions.tsv", "features.lineidx", "imageid2idx.json"
_FIX = 'give JSON with image_h, image_w and objects, each with "rect": [x1, y1, x2, y2]'


class VinvlSource(Source):
    """Reads a folder; a place is (row, offset, length) in the features, then the same in the predictions."""

    format = "vinvl"

    def __init__(self, root: Path, captions: Path | None = None):
        super().__init__(root, captions)
        self.paths = [self.root / name for name in (_FEATURES, _PREDICTIONS)]
        self._features, self._predictions = (Bytes(path, tsv.FIX) for path in self.paths)

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found]:
        offsets, rows = self._line_offsets(), self._row_numbers()
        predicted = self._survey_predictions(advance)
        seen = 0
        for line in tsv.lines(self._features.path, 3, self.files, advance):
            where = f"{self._features.path} row {line.row}"
            key = tsv.text(line.fields[0], "the id", where)
            boxes = tsv.count(line.fields[1], "num_boxes", where)
            if offsets is not None and (line.row >= len(offsets) or offsets[line.row] != line.offset):
                told = offsets[line.row] if line.row < len(offsets) else "nothing"
                raise InputError(
                    f"it says {told} for row {line.row}, which begins at byte {line.offset}",
                    where=f"{self.root / _LINES} line {line.row + 1}",
                    fix="remove the file: it isn't needed here, and belongs to another features.tsv",
                )
            if rows is not None and rows.get(key) != line.row:
                raise InputError(
                    f"it says {rows.get(key)} for {key!r}, which is row {line.row}",
                    where=self.root / _ROWS,
                    fix="remove the file: it isn't needed here, and belongs to another features.tsv",
                )
            if key not in predicted:
                raise InputError(
                    f"{_PREDICTIONS} has no {key!r}, so there are no boxes", where=where, fix="give both of all images"
                )
            place, size, objects = predicted[key]
            if objects != boxes:
                raise InputError(
                    f"num_boxes is {boxes}, {_PREDICTIONS} row {place[0]} has {objects} objects",
                    where=where,
                    fix="give both files of the same detections",
                )
            yield Found(key, where, (line.row, line.offset, line.length, *place), boxes, size)
            seen += 1
        if offsets is not None and len(offsets) != seen:
            raise InputError(
                f"{len(offsets)} offsets for {seen} rows of {_FEATURES}", where=self.root / _LINES, fix=tsv.FIX
            )

    def _survey_predictions(
        self, advance: Callable[[int], object]
    ) -> dict[str, tuple[tuple[int, int, int], tuple[int, int], int]]:
        """Id -> place, (width, height) and number of objects; and the names of all classes."""
        found, names = {}, set()
        for line in tsv.lines(self._predictions.path, 2, self.files, advance):
            where = f"{self._predictions.path} row {line.row}"
            key = tsv.text(line.fields[0], "the id", where)
            if key in found:
                raise InputError(
                    f"{key!r} was already given in row {found[key][0][0]}", where=where, fix="give each image once"
                )
            value = _prediction(line.fields[1], where)
            names.update(item["class"] for item in value["objects"] if "class" in item)
            place = (line.row, line.offset, line.length)
            found[key] = place, (value["image_w"], value["image_h"]), len(value["objects"])
        self.object_names = sorted(names) or None
        return found

    def _line_offsets(self) -> list[int] | None:
        path = self.root / _LINES
        if not path.exists():
            return None
        texts = read_utf8(path).split()
        for number, text in enumerate(texts):
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise InputError(
                    f"{text[:40]!r} is no byte offset", where=f"{path} line {number + 1}", fix="remove the file"
                )
        return [int(text) for text in texts]

    def _row_numbers(self) -> dict[str, int] | None:
        path = self.root / _ROWS
        if not path.exists():
            return None
        found = parse_json(read_utf8(path), path=path, fix="give an object of id: row, or remove the file")
        if not isinstance(found, dict):
            raise InputError("not an object of id: row", where=path, fix="give one, or remove the file")
        return found

    def where(self, place: list[int]) -> str:
        return f"{self._features.path} row {place[0]}"

    def read(self, place: list[int]) -> Record:
        where, beside = self.where(place), f"{self._predictions.path} row {place[3]}"
        content = self._features.read(*place[1:3], where)
        _, number, features = tsv.split(content, 3, where)
        prediction = self._predictions.read(*place[4:6], beside)
        value = _prediction(tsv.split(prediction, 2, beside)[1], beside)
        objects = value["objects"]
        labels = {}
        if self.object_names and all("class" in item for item in objects):
            numbers = {name: index for index, name in enumerate(self.object_names)}
            labels["objects_id"] = np.array([numbers.get(item["class"], -1) for item in objects], np.int64)
        if all("conf" in item for item in objects):
            labels["objects_conf"] = np.array([item["conf"] for item in objects], np.float32)
        return Record(
            tsv.array(features, "features", where, "<f4", tsv.count(number, "num_boxes", where), None),
            np.array([item["rect"] for item in objects], np.float32).reshape(-1, 4),
            (value["image_w"], value["image_h"]),
            labels,
        )


def _prediction(field: bytes, where: str) -> dict[str, Any]:
    """The JSON of a row of predictions, checked."""
    try:
        value = json.loads(field)
        width, height, objects = value["image_w"], value["image_h"], value["objects"]
        if not all(type(side) is int and side > 0 for side in (width, height)):
            raise ValueError(f"image_w {width!r} and image_h {height!r} must be whole numbers above 0")
        for number, item in enumerate(objects):
            rect = item["rect"]
            if len(rect) != 4 or not all(type(x) in (int, float) and abs(x) < 1e30 for x in rect):
                raise ValueError(f"objects[{number}].rect is {rect!r}")
            conf = item.get("conf", 0.0)
            if not isinstance(item.get("class", ""), str) or type(conf) not in (int, float) or abs(conf) > 1e30:
                raise ValueError(f"objects[{number}] has class {item.get('class')!r}, conf {item.get('conf')!r}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"not a prediction ({told})", where=where, fix=_FIX) from None
    return value


def write(folder: Path, rows: Sequence[ImageRow], store: RegionStore, *, advance: Callable[[], object]) -> None:
    """Write `rows`, which `store` has: features, their index, predictions and imageid2idx.json."""
    offsets, offset = [], 0
    with (
        open(folder / _FEATURES, "wb") as features,
        open(folder / _PREDICTIONS, "w", encoding="utf-8", newline="\n") as predictions,
    ):
        for row in rows:
            found = store.read(store.row(row.id))
            image_id = tsv.id_field(row.id, store.folder)
            offsets.append(offset)
            offset += features.write(f"{image_id}\t{len(found)}\t{tsv.encoded(found.features, '<f4')}\n".encode())
            predictions.write(f"{image_id}\t{canonical_json(_described(found, store.object_names))}\n")
            advance()
    write_text(folder / _LINES, "".join(f"{offset}\n" for offset in offsets))
    write_text(folder / _ROWS, canonical_json({row.id: number for number, row in enumerate(rows)}) + "\n")


def _described(found: Regions, names: list[str] | None) -> dict[str, Any]:
    """The JSON of a prediction."""
    objects = [{"rect": box} for box in found.boxes.tolist()]
    if found.objects_id is not None:
        for item, number in zip(objects, found.objects_id.tolist(), strict=True):
            item["class"] = names[number] if names else str(number)
    if found.objects_conf is not None:
        for item, confidence in zip(objects, found.objects_conf.tolist(), strict=True):
            item["conf"] = confidence
    width, height = found.image_size
    return {"image_h": height, "image_w": width, "objects": objects}
