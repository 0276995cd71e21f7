"""LXMERT's TSV: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features.

No header; height comes before width, unlike in bottom-up-attention's. The arrays are base64: ids int64, the rest
float32, boxes absolute (x1, y1, x2, y2). Source: Tan & Bansal, "LXMERT" (EMNLP 2019), `data/*_obj36.tsv`.
"""

from pathlib import Path

from extract.exchange import tsv
from extract.exchange.source import LABELS, Record
from extract.stores.regions import Regions
from manifests.errors import InputError
from manifests.imported import FORMATS

_DTYPES = dict(zip(LABELS, ("<i8", "<f4", "<i8", "<f4"), strict=True))


@FORMATS.add("lxmert-tsv")
class LxmertSource(tsv.TsvSource):
    """Rows of ten fields."""

    fields = 10

    @staticmethod
    def head(fields: list[bytes], where: str) -> tuple[str, tuple[int, int], int]:
        key = tsv.text(fields[0], "img_id", where)
        height, width = (tsv.count(field, name, where, least=1) for field, name in zip(fields[1:3], "hw", strict=True))
        return key, (width, height), tsv.count(fields[7], "num_boxes", where)

    def record(self, fields: list[bytes], where: str, size: tuple[int, int], boxes: int) -> Record:
        labels = {
            name: tsv.array(field, name, where, dtype, boxes, 0, sizes=self.sizes())
            for (name, dtype), field in zip(_DTYPES.items(), fields[3:7], strict=True)
        }
        found = tsv.array(fields[8], "boxes", where, "<f4", boxes, 4, sizes=self.sizes())
        return Record(self.features(fields[9], where, boxes), found, size, labels)

    @staticmethod
    def row(found: Regions, where: Path) -> list[str]:
        labels = [getattr(found, name) for name in LABELS]
        if any(values is None for values in labels):
            raise InputError(
                "it has no classes and attributes with confidences, which lxmert-tsv is made of",
                where=where,
                fix="export butd-tsv, or extract with a detector that has an attribute head",
            )
        encoded = [tsv.encoded(values, dtype) for values, dtype in zip(labels, _DTYPES.values(), strict=True)]
        boxes, features = tsv.encoded(found.boxes, "<f4"), tsv.encoded(found.features, "<f4")
        return [*map(str, found.image_size[::-1]), *encoded, str(len(found)), boxes, features]
