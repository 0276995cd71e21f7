"""LXMERT's TSV: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features.

No header; height comes before width, unlike in bottom-up-attention's. The arrays are base64: ids int64, the rest
float32, boxes absolute (x1, y1, x2, y2). Source: Tan & Bansal, "LXMERT" (EMNLP 2019), `data/*_obj36.tsv`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from extract.exchange import tsv
from extract.exchange.source import LABELS, Bytes, Found, Record, Source, files_in
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.schema import ImageRow

FILE = "regions.tsv"
_FIELDS = 10
_DTYPES = dict(zip(LABELS, ("<i8", "<f4", "<i8", "<f4"), strict=True))


class LxmertSource(Source):
    """Reads one file or all `*.tsv` of a folder; a place is (file, row, offset, length)."""

    format = "lxmert-tsv"

    def __init__(self, root: Path, captions: Path | None = None):
        super().__init__(root, captions)
        self.paths = files_in(root, "*.tsv")
        self._files = [Bytes(path, tsv.FIX) for path in self.paths]

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found]:
        for number, file in enumerate(self._files):
            for line in tsv.lines(file.path, _FIELDS, self.files, advance):
                where = f"{file.path} row {line.row}"
                key = tsv.text(line.fields[0], "img_id", where)
                height, width = (tsv.count(line.fields[i], name, where, least=1) for i, name in ((1, "h"), (2, "w")))
                boxes = tsv.count(line.fields[7], "num_boxes", where)
                place = (number, line.row, line.offset, line.length)
                yield Found(key, where, place, boxes, (width, height))

    def where(self, place: list[int]) -> str:
        return f"{self._files[place[0]].path} row {place[1]}"

    def read(self, place: list[int]) -> Record:
        where = self.where(place)
        content = self._files[place[0]].read(*place[2:], where)
        fields = tsv.split(content, _FIELDS, where)
        height, width = (tsv.count(fields[i], name, where) for i, name in ((1, "h"), (2, "w")))
        rows = tsv.count(fields[7], "num_boxes", where)
        labels = {
            name: tsv.array(field, name, where, dtype, rows, 0)
            for (name, dtype), field in zip(_DTYPES.items(), fields[3:7], strict=True)
        }
        boxes = tsv.array(fields[8], "boxes", where, "<f4", rows, 4)
        features = tsv.array(fields[9], "features", where, "<f4", rows, None)
        return Record(features, boxes, (width, height), labels)


def write(folder: Path, rows: Sequence[ImageRow], store: RegionStore, *, advance: Callable[[], object]) -> None:
    """Write `rows`, which `store` has, to `folder`/regions.tsv. InputError where the store lacks classes."""
    with open(folder / FILE, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            found = store.regions(store.row(row.id))
            labels = [getattr(found, name) for name in LABELS]
            if any(values is None for values in labels):
                raise InputError(
                    "it has no classes and attributes with confidences, which lxmert-tsv is made of",
                    where=store.folder,
                    fix="export butd-tsv, or extract with a detector that has an attribute head",
                )
            width, height = found.image_size
            fields = [tsv.id_field(row.id, store.folder), str(height), str(width)]
            fields += [tsv.encoded(values, dtype) for values, dtype in zip(labels, _DTYPES.values(), strict=True)]
            fields += [str(len(found)), tsv.encoded(found.boxes, "<f4"), tsv.encoded(found.features, "<f4")]
            file.write("\t".join(fields) + "\n")
            advance()
