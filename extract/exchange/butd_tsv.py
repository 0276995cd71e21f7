"""bottom-up-attention's TSV: image_id, image_w, image_h, num_boxes, boxes, features, without a header.

`boxes` and `features` are base64 of float32, boxes absolute (x1, y1, x2, y2). Source: the `tools/generate_tsv.py` of
Anderson et al., "Bottom-Up and Top-Down Attention" (CVPR 2018).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from extract.exchange import tsv
from extract.exchange.source import Bytes, Found, Record, Source, files_in
from extract.stores.regions import RegionStore
from manifests.schema import ImageRow

FILE = "regions.tsv"
_FIELDS = 6


class ButdSource(Source):
    """Reads one file or all `*.tsv` of a folder; a place is (file, row, offset, length)."""

    format = "butd-tsv"

    def __init__(self, root: Path, captions: Path | None = None):
        super().__init__(root, captions)
        self.paths = files_in(root, "*.tsv")
        self._files = [Bytes(path, tsv.FIX) for path in self.paths]

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found]:
        for number, file in enumerate(self._files):
            for line in tsv.lines(file.path, _FIELDS, self.files, advance):
                where = f"{file.path} row {line.row}"
                key = tsv.text(line.fields[0], "image_id", where)
                width, height = (tsv.count(line.fields[i], name, where, least=1) for i, name in ((1, "w"), (2, "h")))
                boxes = tsv.count(line.fields[3], "num_boxes", where)
                place = (number, line.row, line.offset, line.length)
                yield Found(key, where, place, boxes, (width, height))

    def where(self, place: list[int]) -> str:
        return f"{self._files[place[0]].path} row {place[1]}"

    def read(self, place: list[int]) -> Record:
        where = self.where(place)
        content = self._files[place[0]].read(*place[2:], where)
        fields = tsv.split(content, _FIELDS, where)
        width, height, rows = (
            tsv.count(field, name, where) for field, name in zip(fields[1:4], ("w", "h", "num_boxes"), strict=True)
        )
        boxes = tsv.array(fields[4], "boxes", where, "<f4", rows, 4)
        features = tsv.array(fields[5], "features", where, "<f4", rows, None)
        return Record(features, boxes, (width, height))


def write(folder: Path, rows: Sequence[ImageRow], store: RegionStore, *, advance: Callable[[], object]) -> None:
    """Write `rows`, which `store` has, to `folder`/regions.tsv."""
    with open(folder / FILE, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            found = store.regions(store.row(row.id))
            width, height = found.image_size
            boxes, features = tsv.encoded(found.boxes, "<f4"), tsv.encoded(found.features, "<f4")
            image_id = tsv.id_field(row.id, store.folder)
            file.write(f"{image_id}\t{width}\t{height}\t{len(found)}\t{boxes}\t{features}\n")
            advance()
