"""bottom-up-attention's TSV: image_id, image_w, image_h, num_boxes, boxes, features, without a header.

`boxes` and `features` are base64 of float32, boxes absolute (x1, y1, x2, y2). Source: the `tools/generate_tsv.py` of
Anderson et al., "Bottom-Up and Top-Down Attention" (CVPR 2018).
"""

from pathlib import Path

from extract.exchange import tsv
from extract.exchange.source import Record
from extract.stores.regions import Regions
from manifests.imported import FORMATS


@FORMATS.add("butd-tsv")
class ButdSource(tsv.TsvSource):
    """Rows of six fields."""

    fields = 6

    @staticmethod
    def head(fields: list[bytes], where: str) -> tuple[str, tuple[int, int], int]:
        key = tsv.text(fields[0], "image_id", where)
        width, height = (tsv.count(field, name, where, least=1) for field, name in zip(fields[1:3], "wh", strict=True))
        return key, (width, height), tsv.count(fields[3], "num_boxes", where)

    def record(self, fields: list[bytes], where: str, size: tuple[int, int], boxes: int) -> Record:
        found = tsv.array(fields[4], "boxes", where, "<f4", boxes, 4, sizes=self.sizes())
        return Record(self.features(fields[5], where, boxes), found, size)

    @staticmethod
    def row(found: Regions, where: Path) -> list[str]:
        boxes, features = tsv.encoded(found.boxes, "<f4"), tsv.encoded(found.features, "<f4")
        return [*map(str, (*found.image_size, len(found))), boxes, features]
