"""A search: images for a text, and captions or similar images for a picture, with what the words matched.

A text is read as the run reads captions. A picture of the index is its stored embedding; any other is extracted with
the recipe of the index's regions and encoded.
"""

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch

from eval.matching.correspondence import match_words
from eval.report.drawing import caption_html, draw, marks
from eval.search.index import Index, Source
from eval.search.words import RunWords, captioned, unknown_words
from extract.settings import RegionSettings
from extract.stores.regions import RegionStore
from extract.vision.one_picture import extract
from manifests.errors import InputError
from manifests.files import sha256
from manifests.schema import CaptionedImage
from train.batches import region_batch
from train.checkpoint import load_model
from train.model import RetrievalModel

BATCH = 64


@dataclass(frozen=True)
class Hit:
    """One answer: an image, its score, the caption that was found or the image's first, and, where the boxes are known,
    the picture's shape and the regions that words matched, as SVG. `caption` is HTML there, with the words marked."""

    image: CaptionedImage
    score: float
    text: str
    caption: str | None = None
    svg: str | None = None
    aspect: float = 1.0


@dataclass(frozen=True)
class Answer:
    """The hits of a query, best first; `searched` says among which images; `unknown` are words of it that the run
    doesn't know, `asked` the image among them that was asked with, or None; `kind` is "images", "captions" or
    "alike"."""

    query: str
    kind: str
    searched: str
    hits: list[Hit]
    unknown: list[str]
    asked: CaptionedImage | None = None


def search_text(index: Index, source: Source, text: str, *, count: int, device: str) -> Answer:
    """The `count` best images for a text.

    Raises InputError for a text of no word, or of none that the run knows, and for a stale index.
    """
    network = _ready(index, source, device)
    words = replace(source.words, vocabulary=index.folder / "vocabulary.json")
    try:
        query = [replace(index.rows[0], captions=(text,))]
        with captioned(query, words, RegionStore(source.regions), device=device) as data:
            unknown = unknown_words(data)
            if len(unknown) == len(data.caption_words(0)) and unknown:
                raise InputError(
                    f"the run knows none of its words: {', '.join(unknown)}",
                    where=f"query {text!r}",
                    fix=f"use words of the captions that it was trained on ({words.vocabulary} lists them)",
                )
            with torch.inference_mode():
                found = network.encode_captions(data.word_batch([0]).to(device)).embedding.float().cpu().numpy()
    except InputError as error:
        if "no word left" in error.what or "must be text" in error.what:
            raise InputError("it has no word", where=f"query {text!r}", fix="say what is to be seen") from error
        raise
    (rows,), (scores,) = index.images(found, count)
    images = [index.rows[row] for row in rows]
    drawn = _draw([replace(image, split="test", captions=(text,)) for image in images], network, source, words, device)
    hits = [
        Hit(image, float(score), image.captions[0] if image.captions else "", *drawing)
        for image, score, drawing in zip(images, scores, drawn, strict=True)
    ]
    return Answer(text, "images", index.told, hits, unknown)


def search_image(
    index: Index,
    source: Source,
    picture: str,
    *,
    alike: bool,
    count: int,
    device: str,
    settings: RegionSettings | None,
) -> Answer:
    """The `count` best captions for a picture, or, `alike`, the images most like it.

    Parameters
    ----------
    picture : a file, or the id of an image of the index. A file with the bytes of an image of the index is that image.
    settings : of the region stage that made the index's regions; None where they were imported.

    Raises
    ------
    InputError : no such picture or id, one that can't be read, regions that can't be extracted here, a stale index.
    """
    network = _ready(index, source, device)
    path = Path(picture)
    row = index.row_of(digest=sha256(path)) if path.is_file() else index.row_of(id=picture)
    if row is not None:
        pooled, context = index.pooled[row : row + 1], index.context[row : row + 1]
    elif path.is_file():
        pooled, context = _encode_picture(index, source, path, network, settings, device)
    else:
        raise InputError("neither a file nor the id of an image of the index", where=picture, fix="check its name")
    asked = None if row is None else index.rows[row]
    if alike:
        (rows,), (scores,) = index.alike(pooled, context, count)
        hits = [
            Hit(image, float(score), image.captions[0] if image.captions else "")
            for image, score in zip((index.rows[row] for row in rows), scores, strict=True)
        ]
        return Answer(picture, "alike", index.told, hits, [], asked)
    (rows,), (scores,) = index.texts(pooled, context, count)
    first = np.searchsorted(index.caption_image, index.caption_image[rows])
    owners = [index.rows[image] for image in index.caption_image[rows]]
    texts = [owner.captions[place] for owner, place in zip(owners, rows - first, strict=True)]
    drawn: Sequence[tuple] = [()] * len(texts)
    if asked is not None:
        words = replace(source.words, vocabulary=index.folder / "vocabulary.json")
        drawn = _draw([replace(asked, split="test", captions=tuple(texts))], network, source, words, device)
    hits = [
        Hit(owner, float(score), text, *drawing)
        for owner, score, text, drawing in zip(owners, scores, texts, drawn, strict=True)
    ]
    return Answer(picture, "captions", index.told, hits, [], asked)


def table(answer: Answer, width: int = 100) -> str:
    """The hits as text for a terminal of `width` columns: rank, image, score, caption."""
    ids = [hit.image.id for hit in answer.hits]
    column = max(len("image"), *map(len, ids)) if ids else 5
    lines = [f"{'rank':>4}  {'image'.ljust(column)}  {'score':>7}  caption"]
    for rank, hit in enumerate(answer.hits, 1):
        line = f"{rank:>4}  {hit.image.id.ljust(column)}  {hit.score:7.4f}  {' '.join(hit.text.split())}"
        lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _ready(index: Index, source: Source, device: str) -> RetrievalModel:
    index.require_current(source)
    return load_model(source.model, device)


def _encode_picture(
    index: Index, source: Source, path: Path, network: RetrievalModel, settings: RegionSettings | None, device: str
) -> tuple[np.ndarray, np.ndarray]:
    if settings is None:
        raise InputError(
            f"it is not in the index, and the regions of {source.dataset} were imported: no detector for it is known",
            where=path,
            fix="search with a picture of the index",
        )
    regions = extract(path, settings, index.recipe["features"], device=device)
    with torch.inference_mode():
        seen = network.encode_images(region_batch([regions]).to(device))
    return seen.pooled.float().cpu().numpy(), seen.context.float().cpu().numpy()


def _draw(
    rows: Sequence[CaptionedImage], network: RetrievalModel, source: Source, words: RunWords, device: str
) -> list[tuple[str, str | None, float]]:
    """Of every caption of `rows`, in order: itself with its words marked, the regions that they match, and the
    picture's width over height; nothing to draw where the regions came without boxes."""
    store = RegionStore(source.regions)
    with captioned(rows, words, store, device=device) as data:
        with redirect_stderr(StringIO()):
            matches = match_words(network, data, BATCH)
        found = []
        for caption in range(data.num_captions):
            marked = marks(data, caption, None)
            html = caption_html(data.caption_text(caption), marked)
            drawing = draw(data, caption, marked, matches, None) if store.has_boxes else None
            found.append((html, drawing.svg, drawing.aspect) if drawing else (html, None, 1.0))
        return found
