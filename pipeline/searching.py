"""What `selfalign index` and `selfalign search` take from `params.yaml` and from where artifacts lie."""

import re
from pathlib import Path

from eval.search.index import Index, Source
from eval.search.words import RunWords
from extract.settings import RegionSettings
from extract.text.settings import MAX_WORDS, TokenSettings
from manifests.errors import InputError
from pipeline import places
from pipeline.params import Params
from train.checkpoint import read_record


def source(params: Params, run: str, dataset: str) -> Source:
    """A run and a data set to search in. `InputError` for an unknown name."""
    settings = params.run(run)
    if dataset not in params.image_roots:
        params.dataset(dataset)  # says which names there are
    own = settings.dataset
    recipe = read_record(places.model(run))["recipe"]
    known = own in params.datasets
    cached = settings.text.reads == "text_features"
    return Source(
        run=run,
        dataset=dataset,
        model=places.model(run),
        manifest=places.manifest(dataset),
        regions=places.regions(dataset),
        tokens=places.tokens(dataset),
        text_features=places.text_features(dataset) if cached else None,
        words=RunWords(
            tokens=params.dataset(own).tokens
            if known
            else TokenSettings(
                language=recipe["tokens"]["language"]["name"], max_words=recipe["tokens"].get("max_words", MAX_WORDS)
            ),
            pieces=settings.text.pieces,
            encoder=params.text_feature(own) if cached else None,
            vocabulary=places.tokens(own) / "vocabulary.json",
            recipe=recipe,
        ),
    )


def region_settings(params: Params, dataset: str) -> RegionSettings | None:
    """How the data set's regions are extracted; None where they were imported or brought along."""
    settings = params.datasets[dataset].regions if dataset in params.datasets else None
    return settings if isinstance(settings, RegionSettings) else None


def chosen_index(folder: Path | None) -> Index:
    """The index in `folder`, or the only one there is."""
    if folder is None:
        made = sorted(path.parent for path in places.INDEXES.glob("*/recipe.json"))
        if len(made) != 1:
            there = f"there are several: {', '.join(map(str, made))}" if made else "there is no index yet"
            fix = "choose one with --index" if made else "make one: `selfalign index RUN DATASET`"
            raise InputError(there, where=places.INDEXES, fix=fix)
        (folder,) = made
    return Index.open(folder)


def page_of(query: str) -> Path:
    """Where the page of a query lies unless somebody says so."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(query).stem.lower() if Path(query).is_file() else query.lower()).strip("-")
    return places.SEARCHES / f"{name[:60] or 'query'}.html"
