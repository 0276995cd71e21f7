"""The layout of SCAN's precomputed features, which VSE++, VSRN, CAMERA, SGRAF, VSE-infinity and NAAF read too.

`{split}_ims.npy` is f32 ``[N, R, D]``, or ``[N, D]`` of one region an image. `{split}_caps.txt` has a caption a line (C
= N, or the same multiple for all images). Optional files are `{split}_ids.txt` (an id an image, or repeated once a
caption) and `id_mapping.json` (id -> file name). VSE++ repeats an image's row once a caption: k equal rows are one
image then. CAMERA adds `{split}_boxes.npy` ``[N, R, 4]`` and `{split}_img_sizes.npy` ``[N, 2]``; others call them
`_ims_bbx.npy` and `_ims_size.npy`. No file says their convention, so the import needs it as an option. Splits are
train, dev and test; a testall is the test split, and `test` is left alone then.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from extract.exchange.source import Bytes, Found, Record, Source
from extract.stores.npy import Header, read_header, write_header
from extract.stores.regions import RegionStore
from manifests.errors import InputError
from manifests.files import canonical_json, sha256, write_text
from manifests.imported import FORMATS
from manifests.jsonl import parse_json, read_utf8
from manifests.opening import open_file
from manifests.schema import CaptionedImage
from manifests.source import LeftOut, SourceCaption, SourceImage

CAPTIONS = 5
_MOST_REPEATED = 10  # captions an image
_SAMPLE = 64
_SPLITS = {"train": "train", "dev": "val", "val": "val", "testall": "test", "test": "test"}
_WRITTEN = ("train", "dev", "test")
_OPTIONAL = {"boxes": ("boxes", "ims_bbx"), "sizes": ("img_sizes", "ims_size")}
_FIX = "fetch or export the file again: it may have been cut off"


@FORMATS.add("scan")
class ScanSource(Source):
    """Reads the layout; a place is (split, row)."""

    options = frozenset({"boxes", "sizes"})

    def __init__(self, root: Path, captions: Path | None = None, **given: Any):
        super().__init__(root, captions, **given)
        names = [name for name in _SPLITS if (self.root / f"{name}_ims.npy").exists()]
        for name, other in (("test", "testall"), ("val", "dev")):
            if name in names and other in names:
                names.remove(name)
        if not names:
            raise InputError(
                f"there is none of {', '.join(f'{name}_ims.npy' for name in _SPLITS)}",
                where=self.root,
                fix="check `source.images`, the folder of the features",
            )
        taken = {_SPLITS[name] for name in names}
        for name in _SPLITS:
            if _SPLITS[name] not in taken and (self.root / f"{name}_caps.txt").exists():
                self.notes.append(f"{name}_caps.txt has captions, and there is no {name}_ims.npy: it is left out")
        self._splits = [_Split(self.root, name) for name in names]
        self.paths = [path for split in self._splits for path in split.paths]
        self.boxes = given.get("boxes")
        having = {split.boxes is not None for split in self._splits}
        if len(having) > 1:
            raise InputError("only some splits have boxes", where=self.root, fix="give all splits boxes, or none")
        if self.boxes and having == {False}:
            lacking = "there are no boxes ({split}_boxes.npy or {split}_ims_bbx.npy)"
            raise InputError(lacking, where=root, fix="leave out `regions.boxes`")
        if having == {True} and not self.boxes:
            raise InputError(
                "the layout doesn't state the convention of its boxes",
                where=root,
                fix="set `regions.boxes` to xyxy, xywh, relative_xyxy or relative_xywh: ask whoever made them",
            )

    @staticmethod
    def recognises(root: Path) -> bool:
        return any((root / f"{name}_ims.npy").is_file() for name in _SPLITS)

    def survey(self, advance: Callable[[int], object]) -> Iterator[Found | LeftOut]:
        for number, split in enumerate(self._splits):
            if split.repeated > 1:
                self.notes.append(
                    f"{split.features.path.name}: each image's row is repeated {split.repeated} times, and taken once: "
                    f"{split.images:,} images"
                )
            for image, key in enumerate(self._ids(split)):
                row = image * split.repeated
                split.require_repeated(row)
                yield Found(key, split.where(row), (number, row), split.header.shape[1], None, partial(split.read, row))
            self.files |= {path.name: sha256(path, advance) for path in split.paths}

    def where(self, place: list[int]) -> str:
        return self._splits[place[0]].where(place[1])

    def read(self, place: list[int]) -> Record:
        return self._splits[place[0]].read(place[1])

    def entries(self) -> Iterator[SourceImage]:
        paths = _file_names(self.captions)
        for split in self._splits:
            yield from self._entries(split, paths)

    def _entries(self, split: "_Split", paths: dict[str, str] | None) -> Iterator[SourceImage]:
        path = self.captions / f"{split.name}_caps.txt"
        texts, images = _lines(path), split.images
        written = next((n for n in range(len(texts), 0, -1) if texts[n - 1].strip()), 0)
        if written and written % images == 0:  # lines without anything at the file's end are no captions
            texts = texts[:written]
        each, rest = divmod(len(texts), images)
        if rest or not each:
            raise InputError(
                f"{len(texts)} captions for the {images} images of {split.features.path.name}: every image must have "
                "the same number",
                where=f"{path} line {len(texts)}",
                fix="restore the file: a line is one caption, and captions of an image follow each other",
            )
        for row, key in enumerate(self._ids(split)):
            if paths is not None and key not in paths:
                raise InputError(
                    f"it has no file name for id {key!r}",
                    where=self.captions / "id_mapping.json",
                    fix="add the id, or remove the file",
                )
            lines = range(row * each, (row + 1) * each)
            own = tuple(SourceCaption(f"{path.name} line {line + 1}", texts[line]) for line in lines)
            name = paths[key] if paths else key
            yield SourceImage(f"{split.name}_ims.npy row {row * split.repeated}", key, name, _SPLITS[split.name], own)

    def _ids(self, split: "_Split") -> list[str]:
        """The id of every image of a split."""
        images = split.images
        path = next((p for f in (self.captions, self.root) if (p := f / f"{split.name}_ids.txt").exists()), None)
        if path is None:
            return [f"{split.name}-{row:06d}" for row in range(images)]
        ids = [line.strip() for line in _lines(path)]
        each, rest = divmod(len(ids), images)
        if rest or not each:
            raise InputError(
                f"{len(ids)} ids for the {images} images of {split.features.path.name}",
                where=f"{path} line {len(ids)}",
                fix="give an id an image, or each repeated once a caption",
            )
        for line, key in enumerate(ids):
            if key != ids[line - line % each] or not key:
                raise InputError(
                    f"id {key!r} where {ids[line - line % each]!r} must be repeated" if key else "the id is missing",
                    where=f"{path} line {line + 1}",
                    fix="give an id an image, or each repeated once a caption",
                )
        first: dict[str, int] = {}
        for row, key in enumerate(ids[::each]):
            if (other := first.setdefault(key, row)) != row:
                raise InputError(
                    f"id {key!r} was already given at line {other * each + 1}",
                    where=f"{path} line {row * each + 1}",
                    fix="give each image its own id, or each repeated once a caption, one after the other",
                )
        return ids[::each]

    @staticmethod
    def write(
        folder: Path,
        rows: Sequence[CaptionedImage],
        store: RegionStore,
        *,
        drop_captions: bool,
        advance: Callable[[], object],
    ) -> None:
        """Write `rows`, which `store` has, as SCAN's loaders read it: boxes absolute (x1, y1, x2, y2), sizes (w, h).

        Raises InputError where a split's images differ in their number of regions. Each image must have five captions,
        or all must have one; with `drop_captions` those after the fifth are left out.
        """
        counts = store.num_boxes
        for name in _WRITTEN:
            split = _SPLITS[name]
            own = [row for row in rows if row.split == split]
            if own:
                regions = counts[[store.row(row.id) for row in own]]
                if regions.min() < regions.max():
                    raise InputError(
                        f"images of split {split!r} have {regions.min()} to {regions.max()} regions, scan wants the "
                        "same number for all of a split",
                        where=store.folder,
                        fix="extract with min_boxes equal to max_boxes, or export butd-tsv",
                    )
                _write_captions(folder, name, own, drop_captions)
                _write_arrays(folder, name, own, store, (len(own), int(regions[0])), advance)
        write_text(folder / "id_mapping.json", canonical_json({row.id: row.path for row in rows}) + "\n")


class _Split:
    """The arrays of one split."""

    def __init__(self, root: Path, name: str):
        self.name = name
        self.features, self.header = _open(root / f"{name}_ims.npy", 3)
        images, regions, _ = self.header.shape
        self.repeated = self._repeated()
        arrays = {}
        for what, names in _OPTIONAL.items():
            found = [path for n in names if (path := root / f"{name}_{n}.npy").exists()]
            arrays[what] = _open(found[0], 3 if what == "boxes" else 2) if found else None
        for what, shape in (("boxes", (images, regions, 4)), ("sizes", (images, 2))):
            if arrays[what] and arrays[what][1].shape != shape:
                raise InputError(
                    f"shape {list(arrays[what][1].shape)}, not {list(shape)} as {self.features.path.name} asks for",
                    where=arrays[what][0].path,
                    fix="give arrays of the same images",
                )
        if arrays["boxes"] and not arrays["sizes"]:
            raise InputError(
                f"there are boxes, but no {name}_img_sizes.npy with the sizes of the pictures",
                where=arrays["boxes"][0].path,
                fix="give both, or move the boxes away to import without them",
            )
        self.boxes, self.sizes = (arrays["boxes"], arrays["sizes"]) if arrays["boxes"] else (None, None)

    @property
    def images(self) -> int:
        """How many there are, repeated ones once."""
        return self.header.shape[0] // self.repeated

    def _repeated(self) -> int:
        """How often each image's row is repeated, by the first rows and some others.

        Raises InputError where the rows are repeated as a whole.
        """
        rows, first = self.header.shape[0], self._bytes(0)
        each = next((row for row in range(1, min(rows, _MOST_REPEATED + 1)) if self._bytes(row) != first), rows)
        for times in range(2, _MOST_REPEATED + 1):
            if each == 1 and rows % times == 0 and rows > times and self._bytes(rows // times) == first:
                row = rows // times
                if all(self._bytes(k) == self._bytes(k + row) for k in range(0, row, -(-row // _SAMPLE))):
                    raise InputError(
                        f"rows {row} to {2 * row - 1} are rows 0 to {row - 1} again: each image is there {times} times",
                        where=self.features.path,
                        fix=f"keep the first {row} rows",
                    )
        if each == 1 or each > _MOST_REPEATED or rows % each:
            return 1
        groups = range(0, rows // each, -(-rows // each // _SAMPLE))
        alike = [all(self._bytes(each * k) == self._bytes(each * k + n) for n in range(1, each)) for k in groups]
        return each if sum(alike) > len(alike) // 2 else 1

    def require_repeated(self, row: int) -> None:
        """Raise InputError unless an image's rows, from `row` on, are equal."""
        for other in range(row + 1, row + self.repeated):
            if self._bytes(other) != self._bytes(row):
                raise InputError(
                    f"rows are repeated {self.repeated} times, and row {other} isn't row {row}",
                    where=self.where(row),
                    fix="give each image once, or each as often as the others",
                )

    def _bytes(self, row: int) -> bytes:
        size = self.header.size // self.header.shape[0]
        return self.features.read(self.header.offset + row * size, size, self.where(row))

    @property
    def paths(self) -> list[Path]:
        """The files of features, boxes and sizes."""
        return [self.features.path, *(array[0].path for array in (self.boxes, self.sizes) if array)]

    def where(self, row: int) -> str:
        return f"{self.features.path} row {row}"

    def read(self, row: int) -> Record:
        features = _row(self.features, self.header, row)
        if not self.boxes or not self.sizes:
            return Record(features, None, None)
        first, second = _row(*self.sizes, row).tolist()
        return Record(features, _row(*self.boxes, row), (first, second))


def _row(file: Bytes, header: Header, row: int) -> np.ndarray:
    size = header.size // header.shape[0]
    data = file.read(header.offset + row * size, size, f"{file.path} row {row}")
    return np.frombuffer(data, header.dtype).reshape(header.shape[1:])


def _open(path: Path, dimensions: int) -> tuple[Bytes, Header]:
    """A .npy file of numbers, checked to be whole."""
    file = Bytes(path, _FIX)
    with open_file(path) as stream:
        header = read_header(stream, path, fix="give arrays saved by np.save, without pickles")
    if dimensions == 3 and len(header.shape) == 2 and path.name.endswith("_ims.npy"):
        header = header._replace(shape=(header.shape[0], 1, header.shape[1]))  # one vector an image
    if len(header.shape) != dimensions or 0 in header.shape or header.dtype.kind not in "fiu":
        raise InputError(
            f"{header.dtype} of shape {list(header.shape)}, not numbers of {dimensions} dimensions",
            where=path,
            fix="give features [images, regions, numbers], boxes [images, regions, 4] and sizes [images, 2]",
        )
    if file.size != header.offset + header.size:
        whole = max(0, file.size - header.offset) // (header.size // header.shape[0])
        raise InputError(
            f"{file.size} bytes instead of {header.offset + header.size} for the shape {list(header.shape)}",
            where=f"{path} row {min(whole, header.shape[0])}",
            fix=_FIX,
        )
    return file, header


def _lines(path: Path) -> list[str]:
    """Lines that end at "\\n" alone: captions may hold other marks that Python takes for a line's end."""
    found = read_utf8(path).split("\n")
    if not found[-1]:
        found.pop()
    return [line.removesuffix("\r") for line in found]


def _file_names(folder: Path) -> dict[str, str] | None:
    path = folder / "id_mapping.json"
    if not path.exists():
        return None
    found = parse_json(read_utf8(path), path=path, fix="give an object of id: file name")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise InputError("not an object of id: file name", where=path, fix="give one, or remove the file")
    return found


def _write_captions(folder: Path, name: str, rows: Sequence[CaptionedImage], drop: bool) -> None:
    each = 1 if all(len(row.captions) == 1 for row in rows) else CAPTIONS
    for row in rows:
        if len(row.captions) < each or (len(row.captions) > each and not drop):
            raise InputError(
                f"it has {len(row.captions)} captions, and the loaders count on {CAPTIONS}",
                where=f"image {row.id!r}",
                fix="export butd-tsv, which has no captions, or take the image out of the data set"
                if len(row.captions) < each
                else "pass --drop-captions to write the first five of each image",
            )
        if row.id != row.id.strip() or re.search(r"[\r\n]", row.id):
            raise InputError("its id can't stand in a line", where=f"image {row.id!r}", fix="export wds instead")
    # A caption is a line, so its own line ends become spaces.
    texts = [re.sub(r"[\r\n]+", " ", text) for row in rows for text in row.captions[:each]]
    write_text(folder / f"{name}_caps.txt", "".join(f"{text}\n" for text in texts))
    write_text(folder / f"{name}_ids.txt", "".join(f"{row.id}\n" for row in rows))


def _write_arrays(
    folder: Path,
    name: str,
    rows: Sequence[CaptionedImage],
    store: RegionStore,
    shape: tuple[int, int],
    advance: Callable[[], object],
) -> None:
    with open(folder / f"{name}_ims.npy", "wb") as features:
        write_header(features, (*shape, store.dim), np.float32)
        if not store.has_boxes:
            for row in rows:
                _append(features, store.read(store.row(row.id)).features, np.float32)
                advance()
            return
        with (
            open(folder / f"{name}_boxes.npy", "wb") as boxes,
            open(folder / f"{name}_img_sizes.npy", "wb") as sizes,
        ):
            write_header(boxes, (*shape, 4), np.float32)
            write_header(sizes, (shape[0], 2), np.int64)
            for row in rows:
                found = store.read(store.row(row.id))
                _append(features, found.features, np.float32)
                _append(boxes, found.boxes, np.float32)
                _append(sizes, np.array(found.image_size), np.int64)
                advance()


def _append(file: BinaryIO, values: np.ndarray, dtype: type[np.generic]) -> None:
    file.write(np.ascontiguousarray(values, dtype).data)
