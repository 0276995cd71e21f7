"""A data set whose region store has many shards, and all that is done with it, for a process that may open few files.

python -m tests.pipeline.many_shards FOLDER SHARDS
"""

import sys
from pathlib import Path

import numpy as np
import torch

from eval.evaluate import run as evaluate
from eval.search.index import Index, Source
from eval.search.index import run as make_index
from eval.search.search import Searcher
from eval.search.words import RunWords
from eval.settings import EvaluationSettings
from eval.validation import validate
from extract.cards import card
from extract.check import compare, verify
from extract.exchange import export
from extract.exchange import manifest as import_manifest
from extract.settings import ImportSettings, PackSettings
from extract.stages import import_regions, pack, tokens
from extract.stores.intact import INDEX
from extract.stores.norms import Norms
from extract.stores.recipe import write_recipe
from extract.stores.regions import FAILURES, SCHEMA, Regions, region_index, write_shard
from extract.text.settings import TokenSettings
from manifests.files import sha256, write_json
from manifests.imported import write_source
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from train.checkpoint import read_record
from train.settings import RunSettings
from train.train import run as train

DIM, REGIONS, PER_SHARD = 8, 3, 2
WORDS = TokenSettings(language="blank_en", min_count=1)
SPLITS = ("train",) * 8 + ("val", "test")


def write_data_set(folder: Path, shards: int) -> Path:
    """Write `shards` shards of two images each, in turn of every split, with their manifest; gives `folder`."""
    rng = np.random.default_rng(1)
    ids = [f"{number:06d}" for number in range(shards * PER_SHARD)]
    rows = [
        CaptionedImage(
            id, f"{id}.jpg", "0" * 64, 20, 10, SPLITS[number % 10], tuple(f"word{number % 7} {k}" for k in "abcde")
        )
        for number, id in enumerate(ids)
    ]
    write_manifest(folder / "manifest", rows)
    write_source(folder / "manifest", None)
    store = folder / "regions"
    recipe_hash = write_recipe(store, {"format": {"schema": SCHEMA, "features": "float16"}})
    boxes, done, norms = np.tile(np.array([1, 2, 8, 9], np.float32), (REGIONS, 1)), [], []
    for number in range(shards):
        part = ids[number * PER_SHARD : (number + 1) * PER_SHARD]
        found = [Regions(rng.standard_normal((REGIONS, DIM)).astype(np.float16), boxes, (20, 10)) for _ in part]
        path = store / f"{number:06d}.h5"
        write_shard(path, part, found, recipe_hash, dim=DIM, dense=REGIONS, id_bytes=6)
        done.append({"file": path.name, "count": 2, "first": part[0], "last": part[-1], "sha256": sha256(path)})
        norms += [Norms.of(regions.features) for regions in found]
    names = {"object_names": None, "attribute_names": None}
    index = region_index(done, dim=DIM, dense=REGIONS, **names) | {"norms": Norms.combined(norms).as_json()}
    write_json(store / INDEX, index)
    (store / FAILURES).write_text("")
    card.write_card(store)
    return folder


def work(folder: Path) -> None:
    """Verify, describe, compare, pack, export, import, train and evaluate."""
    torch.set_num_threads(1)
    regions, listed = folder / "regions", folder / "manifest"
    assert verify.run(store=regions).total == 0
    assert card.run(regions).findings == []
    assert compare.run(a=regions, b=regions, tolerances=compare.Tolerances()).verdict == "identical"
    tokens.run(manifest=listed, settings=WORDS, out=folder / "tokens")
    stores = {"manifest": listed, "regions": regions, "tokens": folder / "tokens"}
    pack.run(dataset="many", **stores, settings=PackSettings(images_per_shard=PER_SHARD), out=folder / "pack")
    assert verify.run(store=folder / "pack").total == 0
    export.run(format="scan", dataset="many", **stores, out=folder / "scan")
    back = folder / "back"
    import_manifest.run(format="wds", images=folder / "pack", captions=folder / "pack", out=back / "manifest")
    import_regions.run(
        dataset="back",
        manifest=back / "manifest",
        images=folder / "pack",
        settings=ImportSettings(images_per_shard=PER_SHARD),
        out=back / "regions",
        staging=folder / "staging",
    )
    assert (
        compare.run(a=regions, b=back / "regions", tolerances=compare.Tolerances()).verdict == "equivalent"
    )  # pack puts the splits one after another
    settings = RunSettings(
        dataset="many",
        epochs=1,
        batch_size=128,
        base={"name": "vse_infinity", "dim": 8},
        text={"reads": "tokens", "word_dim": 8},
        losses={"triplet": {}},
    )
    train(
        name="many",
        **stores,
        settings=settings,
        validate=lambda model, data: validate(model, data, 128),
        out=folder / "run" / "model",
        curves=folder / "run" / "epochs.csv",
        staging=folder / "staging",
    )
    evaluate(
        name="many",
        manifest_dir=folder / "manifest",
        regions=regions,
        tokens=folder / "tokens",
        model=folder / "run" / "model",
        settings=EvaluationSettings(),
        device="cpu",
        batch_size=128,
        out=folder / "run" / "evaluation",
        metrics=folder / "run" / "metrics.json",
        correspondence=folder / "run" / "correspondence.json",
    )
    model = folder / "run" / "model"
    words = RunWords(
        tokens=WORDS,
        pieces=False,
        encoder=None,
        vocabulary=folder / "tokens" / "vocabulary.json",
        recipe=read_record(model)["recipe"],
    )
    source = Source(run="many", dataset="many", model=model, **stores, text_features=None, words=words)
    make_index(source=source, out=folder / "index", device="cpu", batch_size=128)
    searcher = Searcher(Index.open(folder / "index"), source)
    answer = searcher.images("word3 a", 5)
    assert len(searcher.matches(answer)) == 5


if __name__ == "__main__":
    work(write_data_set(Path(sys.argv[1]), int(sys.argv[2])))
