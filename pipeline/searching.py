"""What `selfalign index` and `selfalign search` take from `params.yaml` and from where artifacts lie."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from eval.search.alike import search_regions
from eval.search.answer import Answer, Kind, WordMatches
from eval.search.index import Index, Source
from eval.search.page import write_page
from eval.search.search import Searcher
from eval.search.words import RunWords
from extract.settings import RegionSettings
from extract.text.settings import MAX_WORDS, TokenSettings
from manifests.errors import InputError
from pipeline import places
from pipeline.params import Params
from train.checkpoint import read_record

_MAKE = "make one: `selfalign index RUN DATASET`"
LONGEST_NAME = 120  # bytes of a page's name that come from the query


def source(params: Params, run: str, dataset: str) -> Source:
    """A run and a data set to search in. `InputError` for an unknown name."""
    settings = params.run(run)
    params.image_root(dataset)  # says which names there are
    cached = settings.text.reads == "text_features"
    return Source(
        run=run,
        dataset=dataset,
        model=places.model(run),
        manifest=places.manifest(dataset),
        regions=places.regions(dataset),
        tokens=places.tokens(dataset),
        text_features=places.text_features(dataset) if cached else None,
        words=words_of_run(params, run),
    )


def words_of_run(params: Params, run: str) -> RunWords:
    """How a trained run reads captions. `InputError` for an unknown run, and for one that isn't trained."""
    settings = params.run(run)
    own = settings.dataset
    recipe = read_record(places.model(run))["recipe"]
    if own in params.datasets:
        tokens = params.dataset(own).tokens
    else:
        language, longest = recipe["tokens"]["language"]["name"], recipe["tokens"].get("max_words", MAX_WORDS)
        tokens = TokenSettings(language=language, max_words=longest)
    return RunWords(
        tokens=tokens,
        pieces=settings.text.pieces,
        encoder=params.text_feature(own) if settings.text.reads == "text_features" else None,
        vocabulary=places.tokens(own) / "vocabulary.json",
        recipe=recipe,
    )


def region_settings(params: Params, dataset: str) -> RegionSettings | None:
    """How the data set's regions are extracted; None where they were imported or brought along."""
    settings = params.datasets[dataset].regions if dataset in params.datasets else None
    return settings if isinstance(settings, RegionSettings) else None


def index_folder(index: Path) -> Path:
    """The folder of an index that is given by its folder, or by its name below `indexes/`."""
    named = places.INDEXES / index
    return named if len(index.parts) == 1 and named.exists() else index


def chosen_index(index: Path | None) -> Path:
    """The folder of an index (`index_folder`), or that of the only one there is."""
    if index is None:
        made = all_indexes()
        if len(made) > 1:
            raise InputError(
                f"there are several: {', '.join(map(str, made))}", where=places.INDEXES, fix="choose one with --index"
            )
        return made[0]
    return index_folder(index)


def all_indexes() -> list[Path]:
    """The indexes below `indexes/`. Raises `InputError` where there is none."""
    made = _made()
    if not made:
        raise InputError("there is no index yet", where=places.INDEXES, fix=_MAKE)
    return made


def _made() -> list[Path]:
    return sorted(path.parent for path in places.INDEXES.glob("*/recipe.json"))


def searcher(params: Params, folder: Path, device: str) -> Searcher:
    """What answers queries in the index at `folder`. Raises `InputError` where it isn't there or isn't current."""
    if not (folder / "recipe.json").exists():
        there = ", ".join(path.name for path in _made())
        fix = f"choose one of {there}, or {_MAKE}" if there else _MAKE
        raise InputError("there is no index", where=folder, fix=fix)
    index = Index.open(folder)
    made = source(params, index.recipe["run"]["name"], index.recipe["data set"]["name"])
    return Searcher(index, made, device=device, settings=region_settings(params, made.dataset))


@dataclass(frozen=True)
class Query:
    """A text, or a picture's file or id, and what is to be found for it."""

    asked: str
    kind: Kind


def answers(
    params: Params,
    queries: Sequence[Query],
    *,
    folder: Path | None,
    dataset: str | None,
    count: int,
    page: Path | None,
    device: str,
) -> Iterator[tuple[Answer, Path] | InputError]:
    """Of each query its answer and the page that was written, or what is wrong with it.

    Parameters
    ----------
    folder : of the index; None for the only one there is.
    dataset : the data set that is searched by its regions, without an index.
    count : hits of a query.
    page : where the page of the only query goes; None for `page_of`.

    Raises `InputError` where there is nothing to search.
    """
    if dataset is None:
        folder = chosen_index(folder)
        opened = searcher(params, folder, device)
        root = params.image_root(opened.source.dataset)
    else:
        root = params.image_root(dataset)
    for query in queries:
        try:
            if dataset is None:
                answer, matches = _answer(opened, query, count)
            else:
                answer, matches = _alike(params, dataset, query.asked, count, device), None
            out = page or page_of(query.asked, query.kind, folder or dataset)
            write_page(answer, matches, root, out)
            yield answer, out
        except InputError as error:
            yield error


def _answer(opened: Searcher, query: Query, count: int) -> tuple[Answer, WordMatches | None]:
    if query.kind == "images":
        answer, picture = opened.images(query.asked, count), None
    else:
        picture = opened.picture(query.asked)
        answer = (opened.captions if query.kind == "captions" else opened.alike)(picture, count)
    return answer, opened.matches(answer, picture)


def _alike(params: Params, dataset: str, picture: str, count: int, device: str) -> Answer:
    return search_regions(
        dataset=dataset,
        manifest=places.manifest(dataset),
        regions=places.regions(dataset),
        picture=picture,
        count=count,
        device=device,
        settings=region_settings(params, dataset),
    )


def page_of(query: str, kind: str, where: object) -> Path:
    """Where the page of a query lies by default. Two pages have one name only if all three are the same.

    Parameters
    ----------
    kind : of the answer (`eval.search.answer.Kind`).
    where : the index or the data set that is searched.
    """
    path = Path(query) if kind != "images" and os.path.isfile(query) else None
    words = re.findall(r"\w+", unicodedata.normalize("NFC", path.stem if path else query).lower())
    name = "-".join(words).encode()[:LONGEST_NAME].decode(errors="ignore") or "query"
    digest = sha256(repr((str(path.resolve()) if path else query, kind, str(where))).encode()).hexdigest()
    return places.SEARCHES / f"{name}-{digest[:8]}.html"
