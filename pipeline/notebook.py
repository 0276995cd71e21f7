"""What `import selfalign` gives: the steps of the pipeline as functions of one line (docs/python.md).

Names of runs, data sets and indexes are those of the project in the current folder.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from eval.search.answer import Answer
from eval.search.search import Searcher
from eval.search.words import CaptionReader
from extract.check.verify import kind_of_store
from extract.stores.regions import Regions, RegionStore
from extract.stores.teachers import TeacherStore
from extract.stores.text_features import TextFeatureStore
from extract.stores.tokens import TokenStore
from extract.vision.one_picture import PictureReader
from manifests.errors import InputError
from manifests.tables import Manifest
from pipeline import places
from pipeline.machine import Machine
from pipeline.params import read_params
from pipeline.searching import chosen_index, region_settings, searcher, words_of_run
from train.batches import region_batch
from train.checkpoint import load_model as load_network
from train.model import RetrievalModel

BATCH = 64
Store = RegionStore | TokenStore | TextFeatureStore | TeacherStore


@dataclass(frozen=True)
class Model:
    """A trained run, ready to encode.

    Attributes
    ----------
    run, dataset : the names of the run and of the data set that it was trained on.
    network : the model, in evaluation mode.
    reader : reads texts as the run reads captions.
    """

    run: str
    dataset: str
    network: RetrievalModel
    reader: CaptionReader

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


def open_manifest(dataset: str | Path) -> Manifest:
    """Open the manifest of a data set, given by its name or by the manifest's folder (a `Path`, or text with a slash).

    ``images`` and ``captioned`` are sequences of its rows. Raises `InputError` where it isn't there or is damaged.
    """
    named = isinstance(dataset, str) and os.sep not in dataset
    return Manifest.open(places.manifest(dataset) if named else Path(dataset))


def open_store(folder: str | Path) -> Store:
    """Open a store: region features, tokens, text features or teachers, whichever the folder holds.

    Arrays are read when they are asked for. Raises `InputError` where there is no such store, and for a pack, which
    `webdataset` reads.
    """
    folder = Path(folder)
    kind = kind_of_store(folder)
    if kind == "pack":
        fix = "read it with webdataset (docs/sharing.md), or open the data set's regions and tokens"
        raise InputError("it holds a pack's shards", where=folder, fix=fix)
    kinds = {"tokens": TokenStore, "text_features": TextFeatureStore, "teachers": TeacherStore}
    return kinds.get(kind, RegionStore)(folder)


def load_model(run: str, *, device: str | None = None) -> Model:
    """Load the trained model of a run of `params.yaml`.

    device : torch device; by default that of the machine's settings (`SELFALIGN_DEVICE`).

    Raises `InputError` for an unknown run, and for one that isn't trained.
    """
    params, device = read_params(), _device(device)
    dataset = params.run(run).dataset
    network = load_network(places.model(run), device)
    return Model(run, dataset, network, CaptionReader(words_of_run(params, run), device=device))


def extract_regions(
    pictures: Sequence[str | Path | bytes], dataset: str, *, device: str | None = None
) -> list[Regions]:
    """Extract the regions of pictures, given as files or as their bytes, as those of a data set were extracted.

    Each has ``features [R, F]``, ``boxes [R, 4]`` (x1, y1, x2, y2 in pixels of the upright picture) and
    ``image_size`` (width, height). Raises `InputError` for a picture that can't be read, and where the data set's
    regions were imported.
    """
    params = read_params()
    settings = region_settings(params, dataset)
    if settings is None:
        params.dataset(dataset)  # says which names there are
        fix = "choose a data set whose regions are extracted"
        raise InputError("its regions were imported: no detector for it is known", where=f"datasets.{dataset}", fix=fix)
    reader = PictureReader(settings, RegionStore(places.regions(dataset)).recipe, device=_device(device))
    found = []
    for number, picture in enumerate(pictures):
        name = f"picture {number}" if isinstance(picture, bytes) else str(picture)
        found.append(reader.read(picture if isinstance(picture, bytes) else Path(picture), name))
    return found


@torch.inference_mode()
def embed_images(model: Model, regions: RegionStore | Sequence[Regions]) -> np.ndarray:
    """Encode images, given by their regions: a store, or what `extract_regions` or ``store.regions(row)`` gives.

    Returns float32 ``[N, E]``; ``[N, k, E]`` for a model of k views an image (CAMERA). Raises `InputError` for an image
    without regions.
    """
    count = len(regions)
    each = regions.read if isinstance(regions, RegionStore) else regions.__getitem__
    found = []
    for start in range(0, count, BATCH):
        own = [each(row) for row in range(start, min(start + BATCH, count))]
        for row, image in enumerate(own, start):
            if not len(image):
                raise InputError("it has no regions", where=f"image {row}", fix="leave it out")
        batch = region_batch(own)
        found.append(model.network.encode_images(batch.to(model.device)).embedding.float().cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, 0), np.float32)


@torch.inference_mode()
def embed_captions(model: Model, texts: Sequence[str]) -> np.ndarray:
    """Encode texts: float32 ``[C, E]``.

    The score of a text with an image is the product of their embeddings, the greatest over the image's views. Raises
    `InputError` for a text without a word.
    """
    if isinstance(texts, str):
        raise InputError("it is one text", where=f"texts {texts!r}", fix="give a list of texts")
    found = []
    for start in range(0, len(texts), BATCH):
        batch = model.reader.read(list(texts[start : start + BATCH])).batch
        found.append(model.network.encode_captions(batch.to(model.device)).embedding.float().cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, 0), np.float32)


def open_index(index: str | Path | None = None, *, device: str | None = None) -> Searcher:
    """Open an index, given by its folder or by its name below `indexes/`; by default the only one there is.

    Raises `InputError` where it isn't there, and where the run or the data set has changed since it was made.
    """
    folder = chosen_index(None if index is None else Path(index))
    return searcher(read_params(), folder, _device(device))


def search(
    index: Searcher,
    text: str | None = None,
    *,
    picture: str | Path | bytes | None = None,
    find: Literal["captions", "alike"] = "captions",
    count: int = 10,
) -> Answer:
    """Find images for a text; or captions for a picture, or images like it (``find="alike"``).

    picture : a file, its bytes, or the id of an image of the index.

    The answer's ``hits`` have an ``image``, a ``score`` and a ``text``, the best first; printed, it is a table. Raises
    `InputError` for a text of which the run knows no word, and for a picture that can't be read.
    """
    if (text is None) == (picture is None):
        raise InputError("it takes a text or a picture", where="selfalign.search", fix="give one of the two")
    if find not in ("captions", "alike"):
        raise InputError(f"there is no {find!r} to find", where="find", fix='write "captions" or "alike"')
    if text is not None:
        return index.images(text, count)
    asked = index.picture(picture)
    return (index.captions if find == "captions" else index.alike)(asked, count)


def match_words(index: Searcher, text: str, picture: str | Path | bytes) -> list[dict[str, Any]]:
    """Find the region of a picture that each word of a text matches best.

    Each word has its ``word``, ``start`` and ``end`` in the text, and ``pos``, its universal part of speech. ``known``
    says whether the run's vocabulary has it. ``region`` is the number of the picture's region, ``box`` its (x1, y1, x2,
    y2) in pixels, None where boxes aren't known. ``cosine`` is the match's. Raises `InputError` as `search` does.
    """
    found = index.match([text], [index.picture(picture)])
    (regions,), matches = found.pictures, found.matches
    unknown = {word.start for word in found.unknown(0)}
    words = {word.start: word for word in found.caption_words(0)}
    return [
        {
            "word": words[int(matches.start[row])].text,
            "start": int(matches.start[row]),
            "end": int(matches.end[row]),
            "pos": words[int(matches.start[row])].pos,
            "known": int(matches.start[row]) not in unknown,
            "region": int(matches.region[row]),
            "box": regions.boxes[matches.region[row]].tolist() if found.boxes else None,
            "cosine": float(matches.cosine[row]),
        }
        for row in matches.rows(0)
    ]


def _device(device: str | None) -> str:
    own = Machine.from_environment().torch_device()  # sets the number of threads too
    return own if device is None else device
