"""Every kind of file that the project reads, with its example and its readers.

A try copies the example and damages one file of it. The sha256 sums and hashes of that file are renewed or not. Then
all readers of such a file read it.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch.utils.data import DataLoader

from eval import ensemble, evaluate
from eval.embed import embed
from eval.evaluated import Evaluated
from eval.matching.pairs import match_pairs
from eval.metrics.eccv import ECCVCaption
from eval.metrics.metric import MetricSettings
from eval.report import report
from eval.report.metrics_table import metrics_table
from eval.search.index import Index
from eval.search.search import Searcher
from eval.settings import ReportSettings
from eval.study.settings import StudySettings
from eval.validation import validate
from extract.cards import card
from extract.check import compare, verify
from extract.exchange import export
from extract.exchange import manifest as imported_manifest
from extract.settings import ImportSettings, PackSettings
from extract.stages import import_regions as imported_regions
from extract.stages import pack, regions, teachers, text_features, tokens
from extract.stores.intact import listed_files, require_intact
from extract.stores.regions import Regions, RegionStore
from extract.stores.teachers import TeacherStore
from extract.stores.text_features import TextFeatureStore
from extract.stores.tokens import TokenStore
from extract.teachers.settings import TeacherSettings
from extract.text.encoder import load_encoder
from extract.text.settings import TextFeatureSettings
from extract.text.vocabulary import read_vocabulary
from extract.vision.decode import UnreadableImage, decode
from extract.vision.given import GivenBoxes
from extract.vision.loading import load_detector
from manifests import manifest, readers
from manifests.errors import InputError
from manifests.files import fingerprint, sha256
from manifests.grounding import read_grounding
from manifests.imported import read_source
from manifests.left_out import Sieve
from manifests.manifest import checked_entries
from manifests.tables import Manifest, manifest_sha256
from pipeline.params import read_params
from tests.extract.region_files import quick_settings
from tests.fuzz import examples
from tests.fuzz.mutations import damaged, form_of
from train.batches import region_batch
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData
from train.stream import CaptionStream, open_shards
from train.train import run as train

LONGEST = 3000  # characters of an error's line


@dataclass(frozen=True, slots=True)
class Damage:
    """One file's other bytes, and what was done to them."""

    file: Path
    data: bytes
    description: str
    renewed: bool


@dataclass(slots=True)
class Try:
    """A damaged copy of the examples; `example` is the sound one. `hidden`: no sum was renewed over the damage."""

    root: Path
    example: Path
    random: Random
    hidden: bool

    @property
    def data(self) -> Path:
        return self.root / "data" / "tiny"

    @property
    def out(self) -> Path:
        return self.root / f"out-{self.random.random()}"


Use = Callable[[Try], object]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    files : patterns of the files that are damaged, below the examples' folder; one of them a try.
    uses : everything that reads such a file.
    store : the folder whose index lists the files, if one does.
    renew : folders whose sums are renewed in most tries, in this order.
    """

    name: str
    files: tuple[str, ...]
    uses: tuple[Use, ...]
    renew: tuple[str, ...] = ()
    form: str | None = None
    only: tuple[str, ...] = field(default=("data/tiny", "data/plain_manifest", "runs"))

    def damage(self, example: Path, seed: int) -> Damage:
        """What try `seed` does."""
        random = Random(f"{self.name} {seed}")
        files = sorted(path for pattern in self.files for path in example.glob(pattern) if path.is_file())
        file = random.choice(files)
        data, description = damaged(file.read_bytes(), self.form or form_of(file), random)
        return Damage(file.relative_to(example), data, description, bool(self.renew) and random.random() < 0.75)

    def run(self, example: Path, seed: int) -> str:
        """Try `seed`: raises `InputError` where one of the uses did, and whatever else happens."""
        damage = self.damage(example, seed)
        tokens.load_language = lambda _: examples.LANGUAGE  # this is a child, and spaCy takes its time
        with self._copy(example) as root:
            _rewrite(root / damage.file, damage.data)
            if damage.renewed:
                renew(root / folder for folder in self.renew)
            store = example / damage.file.parent
            listed = (store / "index.json").is_file() and damage.file.name in listed_files(store)
            refused = None
            for use in self.uses:
                try:
                    use(Try(root, example, Random(seed), hidden=listed and not damage.renewed))
                except InputError as error:
                    if "\n" in str(error) or len(str(error)) > LONGEST:
                        raise AssertionError(f"not one line that can be read: {str(error)[:300]!r}") from error
                    refused = error
            if refused:
                raise refused
        return ""

    def sound(self, example: Path) -> str:
        """All uses of the sound example."""
        tokens.load_language = lambda _: examples.LANGUAGE
        with self._copy(example) as root:
            for use in self.uses:
                use(Try(root, example, Random(0), hidden=False))
        return ""

    @contextmanager
    def _copy(self, example: Path) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix=f"{self.name.replace(' ', '-')}-", dir=example.parent) as folder:
            for name in self.only:
                copy = shutil.copytree if (example / name).is_dir() else shutil.copy
                copy(
                    example / name,
                    Path(folder) / name,
                    **({"copy_function": _linked} if copy is shutil.copytree else {}),
                )
            yield Path(folder)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def renew(folders: Iterable[Path]) -> None:
    """Make stores vouch for what lies in them, as far as they can still be read."""
    for folder in folders:
        try:
            _renew(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue


def _renew(folder: Path) -> None:
    path = folder / "recipe.json"
    if path.is_file():
        written = json.loads(path.read_bytes())
        vocabulary, old = folder / "vocabulary.json", written["recipe_hash"]
        if vocabulary.is_file() and "vocabulary_sha256" in written["recipe"]:
            written["recipe"]["vocabulary_sha256"] = sha256(vocabulary)
        written["recipe_hash"] = fingerprint(written["recipe"])
        if written["recipe_hash"] != old:
            _rewrite(path, json.dumps(written).encode())
            for shard in folder.glob("*.h5"):
                _rewrite(shard, shard.read_bytes().replace(old.encode(), written["recipe_hash"].encode()))
    path = folder / "index.json"
    index = json.loads(path.read_bytes())
    for entry in index["shards"]:
        entry["sha256"] = sha256(folder / entry["file"])
    for name in index.get("files", {}):
        index["files"][name] = sha256(folder / name)
    if "tokens_sha256" in index:
        index["tokens_sha256"] = sha256(folder.parent / "tokens" / "tokens.h5")
    if "manifest_sha256" in index:
        index["manifest_sha256"] = manifest_sha256(folder.parent / "manifest")
    _rewrite(path, json.dumps(index).encode())


def _rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


# What reads manifests and what lies beside them.


def manifest_read(t: Try) -> None:
    list(Manifest.open(t.data / "manifest").captioned)


def grounding_read(t: Try) -> None:
    truth = read_grounding(t.data / "manifest" / "grounding.jsonl")
    data = examples.opened(t.data, "test", "plain")
    match_pairs(load_model(t.root / "runs" / "aligned" / "model"), data, 16, truth)


def coco_ids_read(t: Try) -> None:
    data, listed = examples.opened(t.data, "test", "plain"), Manifest.open(t.data / "manifest")
    ECCVCaption(MetricSettings()).figures(Evaluated(None, data, None, listed))


def older_manifest_read(t: Try) -> None:
    list(Manifest.open(t.data / "older").captioned)


def words_made(t: Try) -> None:
    tokens.run(manifest=t.data / "manifest", settings=examples.WORDS, out=t.out)


def taught(t: Try) -> None:
    teachers.run(
        dataset="tiny",
        manifest=t.data / "manifest",
        regions=t.data / "regions",
        images=t.root,
        settings=TeacherSettings(**examples.TEACHERS, items_per_shard=6),
        out=t.out,
        cache=t.root / "cache",
        staging=t.root / "staging",
    )


def stated(t: Try) -> None:
    settings = TextFeatureSettings(model=str(t.data / "encoder"), captions_per_shard=12)
    text_features.run(dataset="tiny", tokens=t.data / "tokens", settings=settings, out=t.out, cache=t.data / "cache")


def extracted(t: Try) -> None:
    out = t.out
    regions.run(
        dataset="pictures",
        manifest=t.root / "pictures" / "manifest",
        images=t.root / "pictures" / "images",
        settings=quick_settings(unreadable="skip"),
        out=out,
        cache=t.root / "pictures" / "cache",
    )
    _require_sound(out)


def pictures_listed(name: str, format: str, boxes: str | None = None) -> Use:
    def use(t: Try) -> None:
        folder = t.root / "pictures"
        given = folder / boxes if boxes else None
        manifest.run(images=folder / "images", captions=folder / name, format=format, boxes=given, out=t.out)

    return use


def boxes_described(t: Try) -> None:
    folder, given = t.root / "pictures", GivenBoxes.of(t.root / "pictures" / "manifest")
    for row in given.rows(Manifest.open(folder / "manifest").images):
        boxes = row.inside((32, 24))
        assert boxes.dtype == np.float32 and (boxes >= 0).all() and (boxes <= [32, 24, 32, 24]).all()
        regions = Regions(np.zeros((len(boxes), 1), np.float16), boxes, (32, 24))
        assert not given.facts.names or len(row.labelled(regions).objects_id) == len(boxes)
        assert len(row.digest) == 64


def captions_listed(t: Try) -> None:
    for path in (t.root / "pictures" / "others").iterdir():
        sieve = Sieve({"row", "repeated", "caption"} if t.random.random() < 0.5 else (), t.out / "refused.jsonl")
        checked_entries(readers.read(path), path, sieve)
        sieve.refuse()


def pictures_decoded(t: Try) -> None:
    for path in sorted((t.root / "pictures" / "images").iterdir()):
        try:
            rgb = decode(path.read_bytes())
        except UnreadableImage as reason:
            if "\n" in str(reason):
                raise AssertionError(f"not one line: {reason}") from reason
            continue
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3


# Stores.


def verified(name: str) -> Use:
    def use(t: Try) -> None:
        found = verify.run(store=t.root / name)
        found.text()
        if t.hidden and not found.total:
            raise AssertionError("sound, and yet it has changed")

    return use


def described(name: str) -> Use:
    def use(t: Try) -> None:
        found = card.run(t.root / name)
        if t.hidden and not found.findings:
            raise AssertionError("no finding, and yet it has changed")

    return use


def regions_read(name: str) -> Use:
    def use(t: Try) -> None:
        store = RegionStore(t.root / name / "regions")
        rows = list(range(len(store.ids)))
        store.padded(rows)
        for row in rows:
            found = store.regions(row)
            assert len(found.features) == len(found.boxes) == store.num_boxes[row] == len(store.read(row).features)

    return use


def compared(name: str) -> Use:
    def use(t: Try) -> None:
        folder = Path("data") / name / "regions"
        found = compare.run(a=t.example / folder, b=t.root / folder, tolerances=compare.Tolerances())
        found.text()
        json.dumps(found.as_json())

    return use


def packed(name: str) -> Use:
    def use(t: Try) -> None:
        data = t.root / "data" / name
        pack.run(
            dataset="tiny",
            manifest=data / "manifest",
            regions=data / "regions",
            tokens=data / "tokens",
            settings=PackSettings(images_per_shard=6),
            out=t.out,
        )

    return use


def exported(name: str) -> Use:
    def use(t: Try) -> None:
        data = t.root / "data" / name
        export.run(
            format=t.random.choice(("scan", "butd-tsv", "lxmert-tsv", "vinvl", "bua-npz", "wds", "karpathy")),
            dataset=name,
            manifest=data / "manifest",
            regions=data / "regions",
            tokens=data / "tokens",
            out=t.out,
        )

    return use


def evaluated(run: str, name: str = "tiny") -> Use:
    """All that evaluation does, but for COCO's own figures; the run must not fit the damaged recipe by chance."""

    def use(t: Try) -> None:
        data, folder = t.root / "data" / name, t.root / "runs" / run
        split = examples.opened(data, "test", run)
        model = load_model(folder / "model")
        embed(model, split, 16, run=run)
        pairs = match_pairs(model, split, 16, read_grounding(data / "manifest" / "grounding.jsonl"))
        for caption in range(split.num_captions):
            pairs.row(caption)
        require_recipe(folder / "model", split)
        evaluate.run(
            name=run,
            manifest_dir=t.root / "data" / "plain_manifest",
            regions=data / "regions",
            tokens=data / "tokens",
            model=folder / "model",
            settings=examples.EVALUATION,
            device="cpu",
            batch_size=16,
            out=t.out,
            metrics=t.out / "metrics.json",
            correspondence=t.out / "correspondence.json",
            text_features=data / "text_features" if run == "cached" else None,
        )

    return use


def tokens_read(t: Try) -> None:
    store = TokenStore(t.data / "tokens")
    assert len(store.image_ids) and store.recipe_hash
    for caption in range(store.num_captions):
        numbers = store.words(caption), store.pos(caption), store.spans(caption)
        assert len({len(each) for each in (*numbers, store.word_texts(caption))}) == 1
        [store.vocabulary[number] for number in numbers[0]]
        [store.pos_names[number] for number in numbers[1]]
        assert caption in store.captions_of(store.image(caption))
        if store.has_pieces:
            _, word = store.word_pieces(caption)
            numbers[0][word]


def states_read(t: Try) -> None:
    store = TextFeatureStore(t.data / "text_features")
    store.require_tokens(TokenStore(t.data / "tokens"))
    for caption in range(len(store)):
        assert store.states(caption).shape[1] == store.dim


def vectors_read(t: Try) -> None:
    store = TeacherStore(t.data / "teachers")
    store.require_manifest(t.data / "manifest")
    store.failures()
    for side in ("images", "captions"):
        found = store.embeddings(side, list(range(store.count(side))))
        assert np.isfinite(found).all()


def teachers_read(t: Try) -> None:
    data = RetrievalData(
        t.data / "manifest",
        t.data / "regions",
        t.data / "tokens",
        "train",
        teachers=t.data / "teachers",
    )
    data.teacher_batch(list(range(data.num_captions)))


def streamed(t: Try) -> None:
    data = RetrievalData(t.data / "manifest", t.data / "regions", t.data / "tokens", "train", streamed=True)
    shards, recipe = open_shards([str(path) for path in sorted((t.data / "pack").glob("tiny-train-*.tar"))])
    assert recipe
    texts = {
        image.id: [(number, data.caption_text(number)) for number in data.captions_of(place)]
        for place, image in enumerate(data.images)
    }
    stream = CaptionStream(shards, texts, window=4, seed=0)
    network = load_model(t.root / "runs" / "plain" / "model")
    for _, found in DataLoader(stream, batch_size=None):
        with torch.inference_mode():
            network.encode_images(region_batch([found]))


def intact(t: Try) -> None:
    for name in ("regions", "tokens", "text_features", "teachers", "pack"):
        require_intact(t.data / name)


# Other people's formats.


def imported(format: str, folder: str, listed: str | None = "captions.json", **settings: object) -> Use:
    def use(t: Try) -> None:
        images = t.root / folder
        if format in ("butd-tsv", "lxmert-tsv"):
            images /= "regions.tsv"
        options = ImportSettings(**settings, images_per_shard=4)
        out = t.out
        imported_manifest.run(
            images=images,
            captions=t.root / folder / listed if listed else images,
            format=format,
            out=out / "manifest",
            **options.given,
        )
        imported_regions.run(
            dataset="tiny",
            manifest=out / "manifest",
            images=images,
            settings=options,
            out=out / "regions",
            staging=out / "staging",
            readers=2,
        )
        _require_sound(out / "regions")

    return use


_BROUGHT = {
    **{name: name for name in ("coco-detections", "cocobu", "mmf-npy")},
    **{"openvqa": "bua-npz", "vinvl-alone": "vinvl"},
}


def brought(t: Try) -> None:
    """An import of each format that is only read; of the damaged one alone, where one is."""

    def is_damaged(name: str) -> bool:
        files = [path for path in (t.example / "brought" / name).rglob("*") if path.is_file()]
        return any(path.read_bytes() != (t.root / path.relative_to(t.example)).read_bytes() for path in files)

    for name in [name for name in _BROUGHT if is_damaged(name)] or _BROUGHT:
        imported(_BROUGHT[name], f"brought/{name}")(t)


def reimported(t: Try) -> None:
    """The region stage of an import, whose manifest, source or done-markers are damaged."""
    imported_regions.run(
        dataset="tiny",
        manifest=t.root / "imported" / "manifest",
        images=t.root / "exchange" / "butd-tsv" / "regions.tsv",
        settings=ImportSettings(images_per_shard=4),
        out=t.root / "imported" / "regions",
        staging=t.root / "imported" / "staging",
    )
    _require_sound(t.root / "imported" / "regions")


def _require_sound(regions: Path) -> None:
    for store in verify.stores_in(regions):
        found = verify.run(store=store)
        if found.total:
            raise AssertionError(f"what was made isn't sound: {found.findings[0]}")


def source_read(t: Try) -> None:
    read_source(t.root / "imported" / "manifest")


# Weights.


def detected(pattern: str) -> Use:
    def use(t: Try) -> None:
        (path,) = (t.root / "weights").glob(pattern)
        spec = {"name": "demo" if path.stem == "demo" else "rcnn", "weights": str(path), "sha256": sha256(path)}
        if path.stem != "demo":
            spec |= {"shortest": 32, "longest": 64, "proposals_before": 20, "proposals_after": 8, "sampling_ratio": 2}
        detector = load_detector(spec, {"rule": "bottom_up", "min_boxes": 2, "max_boxes": 4})
        if t.random.random() < 0.3:
            picture = detector.prepare(np.full((40, 40, 3), 90, np.uint8))
            detector.detect(picture[None], [(40, 40)])

    return use


def encoder_loaded(t: Try) -> None:
    load_encoder(str(t.data / "encoder"))


def model_loaded(t: Try) -> None:
    for name in ("aligned", "cached"):
        folder, data = t.root / "runs" / name / "model", examples.opened(t.data, "test", name)
        model = load_model(folder)
        require_recipe(folder, data)
        embed(model, data, 16, run=name)


def training_continued(t: Try) -> None:
    train(
        name="aligned",
        manifest=t.data / "manifest",
        regions=t.data / "regions",
        tokens=t.data / "tokens",
        settings=examples.RUNS["aligned"],
        validate=lambda model, data: validate(model, data, 64),
        out=t.root / "trained",
        curves=t.root / "epochs.csv",
        staging=t.root / "staging",
    )


# What runs leave behind.


def averaged(t: Try) -> None:
    ensemble.run(
        name="both", runs=("plain", "aligned"), runs_dir=t.root / "runs", settings=examples.EVALUATION, out=t.out
    )


def reported(t: Try) -> None:
    runs = {name: examples.RUNS[name].model_dump() for name in ("plain", "aligned")}
    metrics_table(runs, t.root / "runs", {"both": list(runs)}, t.root / "ensembles")
    study = {"title": "Size", "vary": {"epochs": [8, 64]}, "run": "plain", "dataset": "tiny"}
    report.run(
        runs=runs,
        runs_dir=t.root / "runs",
        data_dir=t.root / "data",
        image_roots={"tiny": t.root},
        ensembles={"both": list(runs)},
        ensembles_dir=t.root / "ensembles",
        studies={"size": StudySettings(**study)},
        studies_dir=t.root / "studies",
        benchmarks=t.root,
        commit=None,
        settings=ReportSettings(examples=2, retrieved=2),
        out=t.out,
    )


def searched(kind: str) -> Use:
    def use(t: Try) -> None:
        source = examples.source(t.root)
        index = Index.open(t.root / "indexes" / kind)
        searcher = Searcher(index, source)
        queries = np.array(index.captions[:2])
        index.images(queries, 3)
        index.texts(np.array(index.pooled[:2]), np.array(index.context[:2]), 3)
        index.alike(np.array(index.pooled[:2]), np.array(index.context[:2]), 3)
        searcher.matches(searcher.images("caption of image", 3))
        picture = searcher.picture("1001")
        searcher.matches(searcher.captions(picture, 3), picture)

    return use


def params_read(t: Try) -> None:
    read_params(t.root / "params.yaml")


def vocabulary_read(t: Try) -> None:
    read_vocabulary(t.data / "tokens" / "vocabulary.json")
    settings = examples.WORDS.model_copy(update={"vocabulary": t.data / "tokens" / "vocabulary.json"})
    tokens.run(manifest=t.data / "manifest", settings=settings, out=t.out)


def tokenizer_read(t: Try) -> None:
    settings = examples.WORDS.model_copy(update={"tokenizer": t.data / "encoder"})
    tokens.run(manifest=t.data / "manifest", settings=settings, out=t.out)


def _store(name: str) -> tuple[Use, Use]:
    return verified(name), described(name)


def _regions(name: str) -> tuple[Use, ...]:
    folder = f"data/{name}/regions"
    return (
        *_store(folder),
        regions_read(f"data/{name}"),
        compared(name),
        packed(name),
        exported(name),
        evaluated("aligned", name),
        imported("store", f"data/{name}", None),
    )


_TINY = "data/tiny"
_PICTURES = (
    pictures_decoded,
    *(pictures_listed(f"captions.{suffix}", "folder") for suffix in ("csv", "jsonl")),
)
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "manifest",
            (f"{_TINY}/manifest/*.arrow",),
            (
                *(manifest_read, coco_ids_read, words_made, taught),
                *(packed("tiny"), exported("tiny"), evaluated("plain")),
                *(verified(f"{_TINY}/{name}") for name in ("regions", "tokens", "teachers", "pack")),
            ),
            (f"{_TINY}/teachers",),
        ),
        Kind("manifest of pictures", ("pictures/manifest/*",), (extracted,), only=("pictures",)),
        Kind("cache", ("pictures/cache/regions/*/*", "pictures/cache/regions/*/*/*"), (extracted,), only=("pictures",)),
        Kind("cache of states", (f"{_TINY}/cache/text_features/*/*", f"{_TINY}/cache/text_features/*/*/*"), (stated,)),
        Kind("grounding", (f"{_TINY}/manifest/grounding.jsonl",), (grounding_read,)),
        Kind("older manifest", (f"{_TINY}/older/*",), (older_manifest_read,)),
        Kind(
            "source",
            ("imported/manifest/*",),
            (source_read, reimported),
            only=("imported", "exchange"),
        ),
        Kind("done-markers", ("imported/staging/*/*",), (reimported,), only=("imported", "exchange")),
        *(
            Kind(f"captions {suffix}", (f"pictures/{name}",), (pictures_listed(name, format),), only=("pictures",))
            for suffix, name, format in (
                ("karpathy", "captions.json", "karpathy"),
                *((suffix, f"captions.{suffix}", "folder") for suffix in ("csv", "tsv", "jsonl")),
            )
        ),
        *(
            Kind(
                f"boxes {suffix}",
                (f"pictures/{boxes}",),
                (pictures_listed(captions, "folder", boxes),),
                only=("pictures",),
            )
            for suffix, captions, boxes in (
                ("json", "captions.tsv", "boxes.json"),
                ("jsonl", "captions.tsv", "boxes.jsonl"),
                ("csv", "captions.csv", "captions.csv"),
            )
        ),
        Kind("given boxes", ("pictures/manifest/grounding.jsonl",), (boxes_described,), only=("pictures",)),
        Kind(
            "captions of others",
            ("pictures/others/*", "pictures/others/*/*.t*"),
            (captions_listed,),
            only=("pictures",),
        ),
        *(
            Kind(f"picture {suffix}", (f"pictures/images/*.{suffix}",), _PICTURES, only=("pictures",))
            for suffix in ("jpg", "png", "webp", "gif", "tif", "bmp")
        ),
        *(
            Kind(
                f"regions {name}",
                (f"data/{name}/regions/*.h5",),
                _regions(name),
                (f"data/{name}/regions",),
                only=("data", "runs"),
            )
            for name in ("tiny", "ragged")
        ),
        Kind(
            "regions of splits",
            ("pictures/regions/train/*.h5", "pictures/regions/train/*.json*"),
            (*_store("pictures/regions/train"), regions_read("pictures")),
            ("pictures/regions/train",),
            only=("pictures",),
        ),
        Kind("regions beside", (f"{_TINY}/regions/*.json*",), _regions("tiny"), (f"{_TINY}/regions",)),
        Kind(
            "tokens",
            (f"{_TINY}/tokens/*.h5",),
            (
                *_store(f"{_TINY}/tokens"),
                tokens_read,
                evaluated("aligned"),
                evaluated("cached"),
                stated,
                packed("tiny"),
            ),
            (f"{_TINY}/tokens", f"{_TINY}/text_features"),
        ),
        Kind(
            "tokens beside",
            (f"{_TINY}/tokens/*.json",),
            (*_store(f"{_TINY}/tokens"), tokens_read, evaluated("aligned"), evaluated("cached"), stated),
            (f"{_TINY}/tokens", f"{_TINY}/text_features"),
        ),
        Kind(
            "text_features",
            (f"{_TINY}/text_features/*.h5", f"{_TINY}/text_features/*.json"),
            (*_store(f"{_TINY}/text_features"), states_read, evaluated("cached")),
            (f"{_TINY}/text_features",),
        ),
        Kind(
            "teachers",
            (f"{_TINY}/teachers/*.h5", f"{_TINY}/teachers/*.json*"),
            (*_store(f"{_TINY}/teachers"), vectors_read, teachers_read),
            (f"{_TINY}/teachers",),
        ),
        Kind(
            "pack",
            (f"{_TINY}/pack/*.tar",),
            (*_store(f"{_TINY}/pack"), imported("wds", f"{_TINY}/pack", None), streamed),
            (f"{_TINY}/pack",),
        ),
        Kind(
            "pack beside",
            (f"{_TINY}/pack/*.json",),
            (*_store(f"{_TINY}/pack"), imported("wds", f"{_TINY}/pack", None), streamed),
            (f"{_TINY}/pack",),
        ),
        Kind("intact", ("data/tiny/.*.intact.json",), (intact,)),
        Kind(
            "scan",
            ("exchange/scan/*",),
            (imported("scan", "exchange/scan", None, boxes="xyxy"),),
            only=("exchange",),
        ),
        *(
            Kind(f"{format}", (f"exchange/{format}/*",), (imported(format, f"exchange/{format}"),), only=("exchange",))
            for format in ("butd-tsv", "lxmert-tsv", "vinvl")
        ),
        Kind(
            "bua-npz",
            ("exchange/bua-npz/*.npz",),
            (imported("bua-npz", "exchange/bua-npz"), imported("bua-npz", "exchange/bua-npz", info=True)),
            only=("exchange",),
        ),
        Kind("brought", ("brought/*/*.*", "brought/*/*/*"), (brought,), only=("brought",)),
        *(
            Kind(f"weights {name}", (f"weights/{name}",), (detected(name),), only=("weights",))
            for name in ("tiny.pth", "tiny.pkl", "tiny.safetensors", "caffe.pth", "demo.safetensors")
        ),
        Kind("encoder", (f"{_TINY}/encoder/*.json",), (tokenizer_read, encoder_loaded)),
        Kind("encoder weights", (f"{_TINY}/encoder/*.safetensors",), (encoder_loaded,)),
        Kind("model", ("runs/*/model/*",), (model_loaded,)),
        Kind("state", ("staging/*/*", "staging/*/*/*"), (training_continued,), only=("data/tiny", "runs", "staging")),
        Kind(
            "evaluation",
            ("runs/*/evaluation/*",),
            (averaged, reported),
            only=("data/tiny", "runs", "ensembles", "studies"),
        ),
        Kind(
            "results",
            ("runs/plain/*.*", "runs/aligned/*.*", "runs/*/model/run.json", "ensembles/both/*", "studies/size/*"),
            (averaged, reported),
            only=("data/tiny", "runs", "ensembles", "studies"),
        ),
        *(
            Kind(
                f"index {kind}",
                (f"indexes/{kind}/*", f"indexes/{kind}/*/*"),
                (searched(kind),),
                (f"indexes/{kind}",),
                only=("data/tiny", "runs", "indexes"),
            )
            for kind in ("exact", "hnsw")
        ),
        Kind("params", ("params.yaml",), (params_read,), only=("params.yaml",)),
        Kind("vocabulary", (f"{_TINY}/tokens/vocabulary.json",), (vocabulary_read,)),
    )
}
