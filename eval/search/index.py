"""An index: the embeddings of a data set by one run, laid out for search, with their recipe.

`indexes/R-D/` holds `pooled.npy`, `context.npy` and `captions.npy` in full precision (`eval.embeddings`). The codes
that are searched first lie in `images/` and `captions/` (`eval.search.candidates`). A manifest has the images in the
index's order. `vocabulary.json` is the run's own, and `recipe.json` is the index's recipe. An approximate
index also has `images.faiss` and `captions.faiss`. `index.json` lists all files with their sha256. Embeddings are
written as they are made, so that memory doesn't grow with the data set.
"""

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.lib.format import open_memmap
from pydantic import Field

from eval.arrays import save_array
from eval.embeddings import open_parts
from eval.search import approximate
from eval.search.candidates import SHORTEST, Candidates, write_codes
from eval.search.exact import nearest
from eval.search.words import CaptionReader, RunWords
from extract.stores.intact import INDEX, require_intact
from extract.stores.intact import Index as StoreIndex
from extract.stores.made import note_made
from extract.stores.recipe import FILE as RECIPE
from extract.stores.recipe import read_recipe, require_same_recipe, write_recipe
from extract.stores.regions import region_stores
from extract.stores.text_features import TextFeatureStore
from extract.stores.tokens import TokenStore
from manifests.errors import InputError
from manifests.files import fingerprint, sha256, whole_folder, write_json
from manifests.locks import one_writer
from manifests.progress import progress
from manifests.schema import SPLITS, CaptionedImage
from manifests.tables import Manifest, is_manifest, manifest_sha256, write_manifest
from manifests.typed import Written, checked, read_checked
from train.checkpoint import WEIGHTS, load_model, read_record
from train.data import RetrievalData
from train.encoding import Encoding
from train.model import RetrievalModel

FORMAT = "selfalign-index"
SCHEMA = 2
_AGAIN = "make the index again: `selfalign index`"
BOXES = "x1, y1, x2, y2 in pixels of the upright picture"
Kind = Literal["exact", "hnsw", "ivf"]
KINDS = ("exact", "hnsw", "ivf")
SAMPLE, BEST = 200, 10  # queries that an index is tried with, and how many of their best are compared
FEWEST, TRIED = 20, 64  # captions that tell which scores are poor


@dataclass(frozen=True)
class Source:
    """Where an index comes from: the run's model and words, and the data set's files."""

    run: str
    dataset: str
    model: Path
    manifest: Path
    regions: Path
    tokens: Path
    text_features: Path | None
    words: RunWords

    def facts(self, splits: Sequence[str]) -> dict[str, Any]:
        """The facts that an index of some splits depends on; None for files that aren't on this machine."""
        listed = manifest_sha256(self.manifest) if is_manifest(self.manifest) else None
        return {
            "run": {"name": self.run, "weights_sha256": _digest(self.model / WEIGHTS)},
            "data set": {"name": self.dataset, "manifest_sha256": listed},
            "regions": {split: self._regions_sha256(split) for split in splits},
        }

    def _regions_sha256(self, split: str) -> str | None:
        """The hash of a split's index without licence and citation, which no embedding depends on."""
        index = self.regions_index(split)
        if index is None:
            return None
        value = read_checked(index, StoreIndex, fix=_AGAIN)[1]
        return fingerprint({key: own for key, own in value.items() if key != "about"})

    def regions_index(self, split: str) -> Path | None:
        """The index file of a split's regions, if it is on this machine."""
        try:
            return region_stores(self.regions, split)[0] / INDEX
        except InputError:
            return None


@one_writer("index")
def run(
    *, source: Source, splits: Sequence[str] = SPLITS, kind: Kind = "exact", out: Path, device: str, batch_size: int
) -> str:
    """Write the index `out`, whole or not at all; returns a sentence on it.

    Parameters
    ----------
    splits : the splits in it; one without images is left out.
    kind : "exact", or the kind of FAISS's index for approximate search.
    device, batch_size : torch device and items a batch; they change the speed and the last bits.

    Raises
    ------
    InputError : a run of other features, no images, embeddings that are not finite, FAISS missing.
    """
    if kind != "exact":
        approximate.require_faiss()
    record = read_record(source.model)
    source.words.require_vocabulary()
    listed = Manifest.open(source.manifest)
    if not (splits := [split for split in splits if len(listed.rows_in(split))]):
        raise InputError("it has no image of these splits", where=source.manifest, fix="choose others")
    with whole_folder(out) as folder:
        parts = [_open(source, split) for split in splits]
        store = parts[0].region_store
        require_same_recipe(record["recipe"]["regions"], source.model, store.recipe, source.regions)
        rows = [image for part in parts for image in _captioned(part)]
        network = load_model(source.model, device)
        _write_images(folder, network, parts, source.run, batch_size)
        _write_captions(folder, network, parts, source, device, batch_size)
        words, features = record["recipe"]["tokens"], store.recipe
        recipe_hash, summary = finish(folder, source, rows, splits=splits, kind=kind, features=features, words=words)
    note_made(out, recipe_hash, "torch", "numpy", device=device)
    return f"{summary}: {out}"


def finish(
    folder: Path,
    source: Source,
    rows: Sequence[CaptionedImage],
    *,
    splits: Sequence[str],
    kind: Kind,
    features: dict[str, Any],
    words: dict[str, Any],
) -> tuple[str, str]:
    """Write to `folder`, which holds the embeddings of `rows`, all else that an index has.

    features, words : recipes of the regions, and of the words that the run reads.

    Returns the hash of its recipe, and a sentence on its contents.
    """
    write_manifest(folder, rows)
    shutil.copyfile(source.words.vocabulary, folder / "vocabulary.json")
    pooled, context, captions = open_parts(folder, fix=_AGAIN)
    write_codes(folder / "images", pooled, context, what="images")
    if len(captions):
        write_codes(folder / "captions", captions[:, None], _nothing(captions), what="captions")
    recipe = source.facts(splits) | {
        "format": FORMAT,
        "schema": SCHEMA,
        "splits": splits,
        "kind": kind,
        "boxes": BOXES,
        "features": features,
        "words": words,
    }
    recipe_hash = write_recipe(folder, recipe)
    summary = f"{len(rows):,} images and {len(captions):,} captions of {source.dataset}, as {source.run} sees them"
    if kind != "exact":
        summary += "; " + _approximate(folder, recipe, kind)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    write_json(folder / INDEX, {"shards": [], "files": listed})
    return recipe_hash, summary


class _Run(Written):
    name: str
    weights_sha256: str | None


class _DataSet(Written):
    name: str
    manifest_sha256: str | None


class _Recipe(Written):
    run: _Run
    data_set: _DataSet = Field(alias="data set")
    regions: dict[str, str | None]
    splits: list[str]
    kind: Kind
    features: dict[str, Any]
    words: dict[str, Any]


@dataclass(frozen=True)
class Index:
    """An index at hand.

    Attributes
    ----------
    manifest : the N images, with their captions, in its order; read when they are asked for.
    pooled, context, captions : the embeddings, mapped: `[N, k, P]`, `[N, S]`, `[C, P + S]`.
    device : that scans the codes, where it has room for them.
    """

    folder: Path
    recipe: dict[str, Any]
    manifest: Manifest
    pooled: np.ndarray
    context: np.ndarray
    captions: np.ndarray
    device: str = "cpu"

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an index; InputError if the folder has none."""
        if not (folder / "recipe.json").exists():
            raise InputError("there is no index", where=folder, fix="make one: `selfalign index RUN DATASET`")
        recipe, _ = read_recipe(folder)
        if (recipe.get("format"), recipe.get("schema")) != (FORMAT, SCHEMA):
            raise InputError("no index that this program reads", where=folder, fix=_AGAIN)
        checked(recipe, _Recipe, where=folder / RECIPE, fix=_AGAIN)
        require_intact(folder, fix=_AGAIN)
        manifest, parts = Manifest.open(folder), open_parts(folder, fix=_AGAIN)
        here, expected = (len(parts[0]), len(parts[2])), (len(manifest), manifest.num_captions)
        if here != expected:
            message = f"embeddings of {here[0]} images and {here[1]} captions, its manifest has {expected}"
            raise InputError(message, where=folder, fix=_AGAIN)
        return cls(folder, recipe, manifest, *parts)

    def require_current(self, source: Source) -> None:
        """Raise `InputError` with all changes of the run or the data set since. Missing files are skipped."""
        now = source.facts(self.recipe["splits"])
        if "files_sha256" in self.recipe["regions"]:  # of a store of all splits, in older projects
            now["regions"] = {"files_sha256": _digest(source.regions / INDEX)}
        else:
            for split, then in self.recipe["regions"].items():  # made before licences were left out of the hash
                if (index := source.regions_index(split)) is not None and then == _digest(index):
                    now["regions"][split] = then
        changed = [
            (name, key)
            for name, facts in now.items()
            for key, value in facts.items()
            if value is not None and value != self.recipe[name].get(key)
        ]
        changes = []
        if any(name == "run" for name, _ in changed):
            changes.append(f"the run {source.run} was trained again")
        if any(name == "data set" for name, _ in changed):
            changes.append("the data set's pictures or captions have changed")
        if splits := [key for name, key in changed if name == "regions"]:
            changes.append("the regions have changed" + ("" if "files_sha256" in splits else f" ({', '.join(splits)})"))
        if changes:
            fix = f"make it again: `{self._command(source)}`"
            raise InputError(f"{' and '.join(changes)} since it was made", where=self.folder, fix=fix)

    def _command(self, source: Source) -> str:
        """The shortest command that makes it again."""
        own, kind, out = self.recipe["splits"], self.recipe["kind"], self.folder
        listed = Manifest.open(source.manifest) if is_manifest(source.manifest) else None
        there = [split for split in SPLITS if listed is None or len(listed.rows_in(split))]
        options = [f"--split {split}" for split in own if set(own) != set(there)]
        options += [] if kind == "exact" else [f"--kind {kind}"]
        usual = Path("indexes", f"{source.run}-{source.dataset}")
        options += [] if out.resolve() == usual.resolve() else [f"--out {shlex.quote(str(out))}"]
        return " ".join(["selfalign index", source.run, source.dataset, *options])

    @cached_property
    def fitting(self) -> float | None:
        """The score that the best image of a text should have; None where the index has too few captions to tell.

        Of its own captions, half score less with the best image that isn't theirs, or one in ten with the best of all,
        if that is less.
        """
        pick = np.random.default_rng(0).permutation(len(self.captions))[:TRIED]
        if len(pick) < FEWEST or len(self.manifest) < 2:
            return None
        rows, scores = self.images(self.captions[np.sort(pick)], 2)
        others = np.where(rows[:, 0] == self.caption_image[np.sort(pick)], scores[:, 1], scores[:, 0])
        return float(min(np.median(others), np.quantile(scores[:, 0], 0.1)))

    @property
    def has_unit_scores(self) -> bool:
        """Whether a score of a text with an image is a cosine: 1 at most."""
        image = np.concatenate([self.pooled[:1, 0], self.context[:1]], axis=1)
        return all(np.allclose(np.linalg.norm(each), 1, atol=1e-3) for each in (image, self.captions[:1]) if len(each))

    @property
    def rows(self) -> Sequence[CaptionedImage]:
        """The N images with their captions."""
        return self.manifest.captioned

    @property
    def searched(self) -> str:
        """How many images of which data set it has, and of which run."""
        run, dataset = self.recipe["run"]["name"], self.recipe["data set"]["name"]
        return f"{len(self.manifest):,} images of {dataset}, as {run} sees them"

    @cached_property
    def images_to_search(self) -> Candidates:
        return Candidates.open(self.folder / "images", self.pooled, self.context).on(self.device)

    @cached_property
    def captions_to_search(self) -> Candidates:
        if not len(self.captions):
            raise InputError("it has no captions", where=self.folder, fix="search for similar pictures: --images")
        return Candidates.open(self.folder / "captions", self.captions[:, None], _nothing(self.captions)).on(
            self.device
        )

    @cached_property
    def caption_image(self) -> np.ndarray:
        """The image of every caption, int64 `[C]`."""
        return self.manifest.caption_rows

    def images(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best images of captions `[Q, P + S]`: rows and scores `[Q, K]`."""
        return self._search("images", self.images_to_search, queries[:, None], count)

    def texts(self, pooled: np.ndarray, context: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best captions of images `pooled [Q, k, P]`, `context [Q, S]`: rows and scores `[Q, K]`."""
        queries = np.concatenate([pooled, np.repeat(context[:, None], pooled.shape[1], axis=1)], axis=2)
        return self._search("captions", self.captions_to_search, queries, count)

    def alike(self, pooled: np.ndarray, context: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` images most like others, exactly: rows and cosines `[Q, K]`, of mean views beside contexts."""
        queries = np.concatenate([pooled.mean(axis=1), context], axis=1)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True).clip(min=SHORTEST)
        return nearest(self.images_to_search, queries[:, None], count, cosine=True)

    def _search(
        self, name: str, candidates: Candidates, queries: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.recipe["kind"] == "exact":
            return nearest(candidates, queries, count)
        return approximate.search(self.folder / f"{name}.faiss", candidates, queries, count)


class _Arrays:
    """Arrays of a row an item that are written as the items come, equal items once."""

    def __init__(self, folder: Path, names: tuple[str, ...], contents: list[str], run: str):
        self.folder, self.names, self.run, self.count = folder, names, run, len(contents)
        first: dict[str, int] = {}
        self.place = np.array([first.setdefault(content, number) for number, content in enumerate(contents)], np.int64)
        self.arrays: dict[str, np.ndarray] = {}

    def fill(self, start: int, count: int, encode: Callable[[list[int]], Encoding], batch_size: int, unit: str) -> None:
        """Encode the items `start` to `start + count`; `encode` counts them from 0."""
        own = np.arange(start, start + count)
        own = own[self.place[own] == own]
        for at in progress(range(0, len(own), batch_size), what=f"embed {unit}", unit="batches"):
            items = own[at : at + batch_size]
            found = encode((items - start).tolist())
            for name, values in zip(self.names, _values(found, self.names), strict=True):
                if name not in self.arrays:
                    shape = (self.count, *values.shape[1:])
                    self.arrays[name] = open_memmap(self.folder / f"{name}.npy", "w+", np.float32, shape)
                if not np.isfinite(values).all():
                    raise InputError(
                        f"embeddings of {unit} hold NaN or infinite numbers",
                        where=f"run {self.run}",
                        fix="train the run again with a lower learning rate or stronger gradient clipping",
                    )
                self.arrays[name][items] = values

    def finish(self) -> None:
        again = np.flatnonzero(self.place != np.arange(self.count))
        for array in self.arrays.values():
            array[again] = array[self.place[again]]
            array.flush()


def _values(found: Encoding, names: tuple[str, ...]) -> list[np.ndarray]:
    parts = [found.pooled, found.context] if "pooled" in names else [found.embedding]
    return [part.float().cpu().numpy() for part in parts]


@torch.inference_mode()
def _write_images(
    folder: Path, network: RetrievalModel, parts: Sequence[RetrievalData], run: str, batch_size: int
) -> None:
    device = next(network.parameters()).device
    arrays = _Arrays(folder, ("pooled", "context"), [image.sha256 for part in parts for image in part.images], run)
    start = 0
    for part in parts:

        def encode(items: list[int], part: RetrievalData = part) -> Encoding:
            return network.encode_images(part.region_batch(items).to(device))

        arrays.fill(start, len(part.images), encode, batch_size, "images")
        start += len(part.images)
    arrays.finish()


@torch.inference_mode()
def _write_captions(
    folder: Path,
    network: RetrievalModel,
    parts: Sequence[RetrievalData],
    source: Source,
    device: str,
    batch_size: int,
) -> None:
    texts = [part.caption_text(caption) for part in parts for caption in range(part.num_captions)]
    if not texts:
        pooled, context = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pooled", "context"))
        save_array(folder / "captions.npy", np.empty((0, pooled.shape[2] + context.shape[1]), np.float32))
        return
    arrays = _Arrays(folder, ("captions",), texts, source.run)
    reader = None if _has_the_words(source) else CaptionReader(source.words, device=device)
    start = 0
    for part in parts:

        def encode(items: list[int], part: RetrievalData = part) -> Encoding:
            own = part.word_batch(items) if reader is None else reader.read(list(map(part.caption_text, items))).batch
            return network.encode_captions(own.to(device))

        arrays.fill(start, part.num_captions, encode, batch_size, "captions")
        start += part.num_captions
    arrays.finish()


def _captioned(part: RetrievalData) -> list[CaptionedImage]:
    """The images of a split with their captions."""
    texts = [tuple(map(part.caption_text, part.captions_of(image))) for image in range(len(part.images))]
    return [CaptionedImage(*astuple(image), own) for image, own in zip(part.images, texts, strict=True)]


def _open(source: Source, split: str) -> RetrievalData:
    """A split of the data set; with the words that the run reads, where the data set's stores have them."""
    files = source.manifest, source.regions, source.tokens, split
    if not _has_the_words(source):
        return RetrievalData(*files)
    return RetrievalData(*files, pieces=source.words.pieces, text_features=source.text_features)


def _has_the_words(source: Source) -> bool:
    """Whether the data set's captions are stored as the run reads them."""
    recipe = source.words.recipe
    pairs = [(TokenStore(source.tokens).recipe, recipe["tokens"], "min_count")]
    if source.text_features:
        if not source.text_features.exists():
            return False
        pairs.append((TextFeatureStore(source.text_features).recipe, recipe["text_features"], "tokens"))
    return all({**ours, but: None} == {**theirs, but: None} for ours, theirs, but in pairs)


def _approximate(folder: Path, recipe: dict[str, Any], kind: Kind) -> str:
    """Make FAISS's indexes; says how many of the ten best they find, for captions and images of the index itself."""
    index = Index(folder, recipe, Manifest.open(folder), *open_parts(folder, fix=_AGAIN))
    found = []
    random = np.random.default_rng(0)
    pick = [random.permutation(count)[:SAMPLE] for count in (len(index.manifest), len(index.captions))]
    sets = [("images", index.images_to_search, index.captions[pick[1]][:, None])]
    if len(index.captions):
        context = np.repeat(index.context[pick[0]][:, None], index.pooled.shape[1], axis=1)
        sets.append(("captions", index.captions_to_search, np.concatenate([index.pooled[pick[0]], context], axis=2)))
    for name, candidates, queries in sets:
        path = folder / f"{name}.faiss"
        approximate.build(path, candidates, kind)
        if len(queries):
            exact = nearest(candidates, queries, BEST)[0]
            near = approximate.search(path, candidates, queries, BEST)[0]
            shared = np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(exact, near, strict=True)])
            found.append(f"{shared:.1%} of the {BEST} best {name}")
    return f"{kind} finds " + " and ".join(found)


def _nothing(captions: np.ndarray) -> np.ndarray:
    return np.empty((len(captions), 0), np.float32)


def _digest(path: Path) -> str | None:
    return sha256(path) if path.exists() else None
