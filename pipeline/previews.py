"""Previews for `selfalign add`: the pictures or region features and the captions at some paths, and the keys of a data
set's entry for them."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from extract.exchange.boxes import conventions
from extract.exchange.formats import open_source, recognise
from extract.exchange.source import Found, Source
from extract.settings import ImportSettings, RegionSettings
from extract.vision.decode import UnreadableImage, decode
from extract.vision.loading import load_detector
from manifests import readers
from manifests.errors import InputError
from manifests.imported import FORMATS
from manifests.left_out import Sieve
from manifests.manifest import checked_entries, hashed_split, nearby_root, present, sieve_of
from manifests.opening import open_file
from manifests.schema import SPLITS
from manifests.settings import DatasetSource
from manifests.source import SourceImage

_CAPTIONS = (".json", ".jsonl", ".csv", ".tsv", ".token")  # suffixes of captions files that may lie beside pictures
_PICTURES = "pictures"  # the reader of a folder that has no captions file
_FRACTIONS = (0.1, 0.2, 0.3)
_ENOUGH = 50  # images of a split, or a tenth of fewer than 500
_TRIED = 6  # pictures that a detector is timed with, the first left out
_BOXES = 200  # images whose boxes must fit into their pictures


@dataclass(frozen=True)
class SourcePreview:
    """The pictures and captions that were found.

    source, regions : the sections of the data set's entry.
    entries : its images, checked.
    split : of each of them.
    remarks : sentences on what was taken for what.
    """

    source: dict[str, Any]
    regions: dict[str, Any]
    entries: list[SourceImage]
    split: list[str]
    remarks: list[str] = field(default_factory=list)

    @property
    def captions(self) -> list[str]:
        return [caption.text for entry in self.entries for caption in entry.captions]

    @property
    def splits(self) -> Counter[str]:
        """How many images each split has."""
        return Counter(self.split)

    def captions_in(self, split: str) -> int:
        """How many captions the images of a split have."""
        return sum(len(entry.captions) for entry, own in zip(self.entries, self.split, strict=True) if own == split)


@dataclass(frozen=True)
class Sample:
    """What regions are like: how many an image has, the length of a feature, and images a second where they are
    extracted here."""

    boxes: float
    dim: int
    rate: float | None = None


def preview_pictures(
    images: Path, captions: Path | None, regions: dict[str, Any], *, skip: bool, listing: Path
) -> SourcePreview:
    """A folder of pictures, with a captions file or without; without one, such a file in the folder is taken.

    `regions` says how they are extracted, `skip` whether what can't be used is left out, `listing` where it is listed
    otherwise. Raises InputError for paths that aren't there, a captions file that isn't read, and all that the manifest
    stage would refuse but for the pictures' bytes.
    """
    if not images.is_dir():
        raise InputError("the image root is not a folder", where=images, fix="check the path of the images")
    remarks = []
    if captions is None:
        if format := recognise(images):
            fix = f"give --features {format} {images} instead of --images"
            raise InputError("these are region features, no pictures", where=images, fix=fix)
        captions = _captions_in(images)
        if captions not in (None, images):
            remarks.append(f"{captions} is in the folder, so its captions are taken")
    captions = captions or images
    format = readers.kind_of(captions).name
    with _sieve(skip, listing) as sieve:
        entries = checked_entries(readers.read(captions, format), captions, sieve, root=images)
        path = entries[0].path
        if not os.path.exists(images / path) and (root := nearby_root(images, path)):
            remarks.append(f"its pictures are named from {root} on, so that is the image root")
            images = root
        entries = present(images, entries, captions, sieve)
        sieve.refuse()
    source = {"format": format, "images": images, "captions": captions, "watch": captions}
    return _preview(source, regions, entries, remarks, sieve)


def preview_features(
    format: str, root: Path, captions: Path | None, boxes: str | None, sizes: str | None, *, skip: bool, listing: Path
) -> SourcePreview:
    """Region features in an exchange format; the boxes' convention is found where their numbers allow one alone.

    Raises InputError as `extract.exchange.formats.open_source` does, and for captions that aren't there.
    """
    remarks = []
    if "boxes" in FORMATS.find(format).options and not boxes and (found := _convention(format, root, sizes)):
        boxes = found
        remarks.append(f"no other convention of boxes than {boxes} fits their numbers")
    regions = {name: value for name, value in (("boxes", boxes), ("sizes", sizes)) if value}
    source, captions = open_source(format, root, captions, **regions), captions or root
    regions |= {"precision": source.precision} if source.precision != "float16" else {}
    items = source.entries()
    if items is None and captions == root and not readers.READERS.find("splits").recognises(readers.Preview.at(root)):
        raise InputError(f"{format} has no captions", where=root, fix="name a file of captions with --captions")
    if items is not None and source.captions_in_survey:
        for _ in source.survey(lambda _: None):
            pass
    with _sieve(skip, listing) as sieve:
        entries = checked_entries(readers.read(captions) if items is None else items, captions, sieve)
        sieve.refuse()
    where = {"format": format, "images": root, "captions": captions, "watch": root}
    where |= {"missing": "skip", "unreadable": "skip"} if skip else {}  # the features themselves aren't looked at here
    return _preview(where, regions, entries, remarks, sieve)


def sample_pictures(preview: SourcePreview, device: str) -> Sample | None:
    """The detector tried on some of the pictures; None where none of them can be read.

    Raises InputError for a detector that isn't on this machine.
    """
    settings = RegionSettings.model_validate(preview.regions)
    detector = load_detector(settings.detector, settings.selection, device)
    spread = preview.entries[:: max(1, len(preview.entries) // _TRIED)][:_TRIED]
    found, seconds = [], []
    for entry in spread:
        start = time.perf_counter()
        try:
            with open_file(preview.source["images"] / entry.path) as file:
                rgb = decode(file, settings.max_pixels)
        except (OSError, UnreadableImage):
            continue
        found += detector.detect(detector.prepare(rgb)[None], [(rgb.shape[1], rgb.shape[0])])
        seconds.append(time.perf_counter() - start)
    if not found:
        return None
    times = seconds[1:] or seconds
    return Sample(float(np.mean([len(each) for each in found])), detector.dim, len(times) / sum(times))


def sample_features(preview: SourcePreview) -> Sample | None:
    """The regions of the first images of the files; None where none of them can be read."""
    where = preview.source
    given = ImportSettings(**preview.regions).given
    source = open_source(where["format"], where["images"], where["captions"], **given)
    found = [item.load().features for item in islice(_images(source), _TRIED)]
    return Sample(float(np.mean([len(each) for each in found])), found[0].shape[1]) if found else None


@contextmanager
def _sieve(skip: bool, listing: Path) -> Iterator[Sieve]:
    """Refuses, or leaves out, what can't be used. An InputError advises the option for that."""
    allowed = "skip" if skip else "refuse"
    try:
        yield sieve_of(listing, allowed, allowed, listing)
    except InputError as error:
        fix = re.sub(r"set (`source\.\w+: skip`( and )?)+ to leave", "give --skip to leave", error.fix)
        raise InputError(error.what, where=error.where, fix=fix) from error


def _preview(
    source: dict[str, Any], regions: dict[str, Any], entries: list[SourceImage], remarks: list[str], sieve: Sieve
) -> SourcePreview:
    """The preview with its splits; where the file has none, the fractions rise until each has images enough.

    Without captions there is nothing to train on, and all images are in one split.
    """
    kinds = {item.kind for item in sieve.items}
    source |= {"missing": "skip"} if "missing" in kinds else {}
    source |= {"unreadable": "skip"} if kinds - {"missing"} else {}
    remarks += [sieve.summary().replace("see left_out.jsonl", "the manifest lists them")] if kinds else []
    bare = not any(entry.captions for entry in entries)
    for val, test in [(0.0, 0.0)] if bare else [(each, each) for each in _FRACTIONS]:
        split = [entry.split or hashed_split(entry.id, val, test) for entry in entries]
        if entries[0].split is not None or min(map(split.count, SPLITS)) >= min(_ENOUGH, len(split) // 10 or 1):
            break
    if entries[0].split is None and val != DatasetSource.model_fields["val_fraction"].default:
        source = source | {"val_fraction": val, "test_fraction": test}
    return SourcePreview(source, regions, entries, split, remarks)


def _captions_in(images: Path) -> Path | None:
    """The captions file in a folder that names pictures of it, or the folder itself where it is one of captions.

    Raises InputError where there are several files.
    """
    if readers.kind_of(images).name != _PICTURES:
        return images
    found = [path for path in sorted(images.iterdir()) if path.suffix.lower() in _CAPTIONS and _names(images, path)]
    if len(found) > 1:
        message = f"there are several captions files: {', '.join(path.name for path in found)}"
        raise InputError(message, where=images, fix="choose one with --captions")
    return found[0] if found else None


def _names(images: Path, captions: Path) -> bool:
    """Whether a captions file's first picture is in a folder."""
    try:
        first = next((item for item in readers.read(captions) if isinstance(item, SourceImage)), None)
    except InputError:
        return False
    return first is not None and os.path.isfile(images / first.path)


def _images(source: Source) -> Iterator[Found]:
    return (item for item in source.survey(lambda _: None) if isinstance(item, Found))


def _convention(format: str, root: Path, sizes: str | None) -> str | None:
    """The one convention that boxes of files may have; None where there are several, or no boxes."""
    try:
        source = open_source(format, root, boxes="xyxy", sizes=sizes)
    except InputError:
        return None
    records = (source.read(list(item.place)) for item in islice(_images(source), _BOXES))
    found = conventions(
        (each.boxes, each.size if sizes != "hw" else each.size[::-1]) for each in records if each.boxes is not None
    )
    return found.pop() if len(found) == 1 else None
