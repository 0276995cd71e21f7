"""VinVL's files, which Oscar and ALADIN read: two tables, one of features and one of each image's predictions.

| features | |
|---|---|
| `features.tsv` | id, num_boxes, base64 float32 ``[R, D]`` |
| `{split}.feature.tsv` (Oscar's captioning) | id, JSON with num_boxes and features, base64 |
| none | each object of the predictions has a `feature`, base64 ``[D]``, as scene_graph_benchmark writes it |

D is 2,048, or 2,054 with six box terms appended; all columns are features here. `predictions.tsv`, or
`{split}.label.tsv`, has two columns: id, and JSON. The JSON is a list of objects (class, rect, conf), or an object with
`objects` and perhaps image_h and image_w. A rect is absolute (x1, y1, x2, y2). Sizes that are lacking there are in
`hw.tsv`, or `{split}.hw.tsv`: id, and JSON of height and width. `features.lineidx` (byte offset of each row) and
`imageid2idx.json` (id -> row) are checked if they exist. Source: Zhang et al., "VinVL" (CVPR 2021).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from extract.exchange import tsv
from extract.exchange.source import Bytes, Found, Record, Source
from extract.stores.regions import Regions, RegionStore
from manifests.errors import InputError
from manifests.files import canonical_json, write_text
from manifests.imported import FORMATS
from manifests.jsonl import parse_json, read_utf8
from manifests.schema import ImageRow
from manifests.source import LeftOut

_FEATURES, _PREDICTIONS, _LINES, _ROWS, _SIZES = (
    *("features.tsv", "predictions.tsv", "features.lineidx", "imageid2idx.json"),
    "hw.tsv",
)
_FIX = 'give JSON with image_h, image_w and objects, each with "rect": [x1, y1, x2, y2]'
_SPLITS = re.compile(r"(.+)\.(?:feature|label)\.tsv")
_OTHER = "remove the file: it isn't needed here, and belongs to another features.tsv"


class _Tables(NamedTuple):
    """The files of one split; features is None where the predictions have them."""

    features: Bytes | None
    predictions: Bytes
    sizes: Path


class _Predicted(NamedTuple):
    """A row of predictions: its place, the picture's (width, height) if it says so, and its number of objects."""

    place: tuple[int, int, int]
    size: tuple[int, int] | None
    objects: int


@FORMATS.add("vinvl")
class VinvlSource(Source):
    """Reads a folder.

    A place is (row, offset, length) in the features, then the same in the predictions. If hw.tsv has the size or there
    are several splits, three numbers follow: width and height (or 0), and the number of the split's tables.
    """

    options = frozenset({"dtype"})

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        self._tables = _tables(self.root)
        self.paths = [file.path for tables in self._tables for file in tables[:2] if file]
        self.paths += [tables.sizes for tables in self._tables if tables.sizes.exists()]
        self._numbers = tsv.NumberType(given.get("dtype"))

    @staticmethod
    def recognises(root: Path) -> bool:
        named = any(_SPLITS.fullmatch(path.name) for path in root.glob("*.tsv"))
        return root.is_dir() and ((root / _PREDICTIONS).is_file() or named)

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        names: set[str] = set()
        surveyed = []
        for tables in self._tables:
            sizes = _sizes(tables.sizes, self.files, advance)
            predicted: dict[str, _Predicted | None] = {}
            yield from self._predicted(tables, predicted, names, advance)
            surveyed.append((sizes, predicted))
        self.object_names = sorted(names) or None
        for number, (tables, (sizes, predicted)) in enumerate(zip(self._tables, surveyed, strict=True)):
            if tables.features is None:
                rows = ((key, found.place, found.objects) for key, found in predicted.items() if found)
                where = tables.predictions.path
            else:
                rows, where = self._rows(tables.features.path, advance), tables.features.path
            for row in rows:
                if isinstance(row, LeftOut):
                    yield row
                    continue
                key, place, boxes = row
                if predicted.get(key, key) is None:  # its row of predictions is left out already
                    continue
                yield self._joined(number, key, place, boxes, predicted.get(key), sizes.get(key))
            self._numbers.end(str(where))

    def _joined(
        self,
        number: int,
        key: str,
        place: tuple[int, int, int],
        boxes: int | None,
        predicted: _Predicted | None,
        size: tuple[int, int] | None,
    ) -> Found | LeftOut:
        """A row of features with its row of predictions."""
        tables = self._tables[number]
        where = f"{(tables.features or tables.predictions).path} row {place[0]}"
        beside = tables.predictions.path.name
        if predicted is None:
            message = f"{beside} has no {key!r}, so there are no boxes"
            return LeftOut("row", InputError(message, where=where, fix="give both of all images"), key)
        if boxes is not None and predicted.objects != boxes:
            message = f"num_boxes is {boxes}, {beside} row {predicted.place[0]} has {predicted.objects} objects"
            return LeftOut("row", InputError(message, where=where, fix="give both files of the same detections"), key)
        whole = predicted.size or size
        if whole is None:
            message = f"{beside} has no image_w and image_h of {key!r}, and {tables.sizes.name} no size"
            fix = f'give {tables.sizes.name}: a row of the id and [{{"height": ..., "width": ...}}] an image'
            return LeftOut("row", InputError(message, where=where, fix=fix), key)
        at = (*place, *predicted.place)
        if number or not predicted.size:
            at += (*((0, 0) if predicted.size else whole), number)
        try:
            record = self.read(list(at))
        except InputError as error:
            return LeftOut("row", error, key)
        self._numbers.observe(record.features, where)
        return Found(key, where, at, predicted.objects, whole, lambda: record)

    def _predicted(
        self, tables: _Tables, found: dict[str, _Predicted | None], names: set[str], advance: Callable[[int], object]
    ) -> Iterator[LeftOut]:
        """Gather a table of predictions, and the names of all classes."""
        for line in tsv.lines(tables.predictions.path, self.files, advance):
            key = None
            try:
                fields = tsv.split(line.content, 2, line.where)
                key = tsv.text(fields[0], "the id", line.where)
                if key in found:
                    earlier = found[key]
                    message = f"{key!r} was already given{f' in row {earlier.place[0]}' if earlier else ''}"
                    error = InputError(message, where=line.where, fix="give each image once")
                    yield LeftOut("repeated", error, key)
                    continue
                size, objects = _prediction(fields[1], line.where)
            except InputError as error:
                yield LeftOut("row", error, key)
                if key is not None:
                    found[key] = None
                continue
            names.update(item["class"] for item in objects if "class" in item)
            found[key] = _Predicted((line.row, line.offset, line.length), size, len(objects))

    def _rows(
        self, path: Path, advance: Callable[[int], object]
    ) -> Iterator[LeftOut | tuple[str, tuple[int, int, int], int]]:
        """Key, place and number of boxes of each row of features."""
        offsets, numbers = self._line_offsets(path), self._row_numbers()
        seen = 0
        for line in tsv.lines(path, self.files, advance):
            if offsets is not None and (line.row >= len(offsets) or offsets[line.row] != line.offset):
                expected = offsets[line.row] if line.row < len(offsets) else "nothing"
                raise InputError(
                    f"it says {expected} for row {line.row}, which begins at byte {line.offset}",
                    where=f"{path.with_suffix('.lineidx')} line {line.row + 1}",
                    fix=_OTHER,
                )
            seen += 1
            key = None
            try:
                key, boxes, _ = _features(line.content, line.where)
            except InputError as error:
                yield LeftOut("row", error, key)
                continue
            if numbers is not None and str(numbers.get(key)) != str(line.row):
                raise InputError(
                    f"it says {numbers.get(key)} for {key!r}, which is row {line.row}",
                    where=self.root / _ROWS,
                    fix=_OTHER,
                )
            yield key, (line.row, line.offset, line.length), boxes
        if offsets is not None and len(offsets) != seen:
            raise InputError(
                f"{len(offsets)} offsets for {seen} rows of {path.name}",
                where=path.with_suffix(".lineidx"),
                fix=tsv.FIX,
            )

    def _line_offsets(self, features: Path) -> list[int] | None:
        path = features.with_suffix(".lineidx")
        if not path.exists():
            return None
        texts = read_utf8(path).split()
        for number, text in enumerate(texts):
            if not re.fullmatch(r"[0-9]{1,18}", text):
                raise InputError(
                    f"{text[:40]!r} is no byte offset", where=f"{path} line {number + 1}", fix="remove the file"
                )
        return [int(text) for text in texts]

    def _row_numbers(self) -> dict[str, Any] | None:
        path = self.root / _ROWS
        if not path.exists() or len(self._tables) > 1:
            return None
        found = parse_json(read_utf8(path), path=path, fix="give an object of id: row, or remove the file")
        if not isinstance(found, dict):
            raise InputError("not an object of id: row", where=path, fix="give one, or remove the file")
        return found

    def where(self, place: list[int]) -> str:
        tables = self._tables[place[8] if len(place) > 8 else 0]
        return f"{(tables.features or tables.predictions).path} row {place[0]}"

    def read(self, place: list[int]) -> Record:
        tables, where = self._tables[place[8] if len(place) > 8 else 0], self.where(place)
        beside = f"{tables.predictions.path} row {place[3]}"
        prediction = tsv.split(tables.predictions.read(*place[4:6], beside), 2, beside)[1]
        size, objects = _prediction(prediction, beside)
        if tables.features is None:
            array = partial(self._array, where=where, rows=1)
            vectors = [array(str(item.get("feature", "")).encode("utf-8", "replace")) for item in objects]
            if len({vector.shape for vector in vectors}) > 1:
                raise InputError("its features are of several lengths", where=where, fix=tsv.FIX)
            features = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
        else:
            _, boxes, field = _features(tables.features.read(*place[1:3], where), where)
            features = self._array(field, where, boxes)
        labels = {}
        if self.object_names and all("class" in item for item in objects):
            numbers = {name: index for index, name in enumerate(self.object_names)}
            labels["objects_id"] = np.array([numbers.get(item["class"], -1) for item in objects], np.int64)
        if all("conf" in item for item in objects):
            labels["objects_conf"] = np.array([item["conf"] for item in objects], np.float32)
        boxes = np.array([item["rect"] for item in objects], np.float32).reshape(-1, 4)
        return Record(features, boxes, size or (place[6], place[7]), labels)

    def _array(self, field: bytes, where: str, rows: int) -> np.ndarray:
        return tsv.array(field, "features", where, self._numbers.dtype, rows, None)

    @staticmethod
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


def _tables(root: Path) -> list[_Tables]:
    """The tables of a folder: VinVL's own, or a set a split. Raises InputError if it has none."""
    features = root / _FEATURES
    if features.exists() or (root / _PREDICTIONS).exists():
        own = Bytes(features, tsv.FIX) if features.exists() else None
        return [_Tables(own, Bytes(root / _PREDICTIONS, tsv.FIX), root / _SIZES)]
    splits = sorted({found[1] for path in root.glob("*.tsv") if (found := _SPLITS.fullmatch(path.name))})
    if not splits:
        message = f"there is no {_PREDICTIONS}, and no {{split}}.feature.tsv with {{split}}.label.tsv"
        raise InputError(
            message, where=root, fix="check `source.images`, and give features and predictions of all images"
        )
    return [
        _Tables(
            Bytes(root / f"{split}.feature.tsv", tsv.FIX),
            Bytes(root / f"{split}.label.tsv", tsv.FIX),
            root / f"{split}.hw.tsv",
        )
        for split in splits
    ]


def _features(content: bytes, where: str) -> tuple[str, int, bytes]:
    """Id, number of boxes and base64 of a row of features."""
    fields = content.split(b"\t")
    key = tsv.text(fields[0], "the id", where)
    if len(fields) == 2 and fields[1].lstrip().startswith(b"{"):
        try:
            value = json.loads(fields[1])
            return key, tsv.count(str(value["num_boxes"]).encode(), "num_boxes", where), value["features"].encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"not num_boxes and features in JSON ({error})"
            raise InputError(message, where=where, fix=tsv.FIX) from None
    tsv.split(content, 3, where)
    return key, tsv.count(fields[1], "num_boxes", where), fields[2]


def _sizes(path: Path, files: dict[str, str], advance: Callable[[int], object]) -> dict[str, tuple[int, int]]:
    """Id -> (width, height), as in hw.tsv; empty without that file."""
    found = {}
    for line in tsv.lines(path, files, advance) if path.exists() else ():
        fields = tsv.split(line.content, 2, line.where)
        try:
            value = json.loads(fields[1])
            value = value[0] if isinstance(value, list) else value
            size = value["width"], value["height"]
            if not all(type(side) is int and side > 0 for side in size):
                raise ValueError(f"width and height are {size}")
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            fix = 'give [{"height": ..., "width": ...}], whole pixels above 0'
            raise InputError(f"no size ({error})", where=line.where, fix=fix) from None
        found[tsv.text(fields[0], "the id", line.where)] = size
    return found


def _prediction(field: bytes, where: str) -> tuple[tuple[int, int] | None, list[dict[str, Any]]]:
    """(width, height), if it says so, and the objects of a row of predictions, checked."""
    try:
        value = json.loads(field)
        objects = value if isinstance(value, list) else value["objects"]
        size = None
        if isinstance(value, dict) and {"image_w", "image_h"} & value.keys():
            size = width, height = value["image_w"], value["image_h"]
            if not all(type(side) is int and side > 0 for side in size):
                raise ValueError(f"image_w {width!r} and image_h {height!r} must be whole numbers above 0")
        for number, item in enumerate(objects):
            rect = item["rect"]
            if len(rect) != 4 or not all(type(x) in (int, float) and abs(x) < 1e30 for x in rect):
                raise ValueError(f"objects[{number}].rect is {rect!r}")
            conf = item.get("conf", 0.0)
            if not isinstance(item.get("class", ""), str) or type(conf) not in (int, float) or abs(conf) > 1e30:
                raise ValueError(f"objects[{number}] has class {item.get('class')!r}, conf {item.get('conf')!r}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"not a prediction ({message})", where=where, fix=_FIX) from None
    return size, objects


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
