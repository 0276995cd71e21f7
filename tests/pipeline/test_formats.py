"""One of each of the formats that are written, as they lie in tests/data, is read with its numbers by today's code."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.embed import embed
from eval.embeddings import Embeddings
from eval.figures import read_ranks
from eval.search.index import Index
from extract.check.verify import run as verify
from extract.stores.regions import RegionStore
from extract.stores.teachers import TeacherStore
from extract.stores.text_features import TextFeatureStore
from extract.stores.tokens import TokenStore
from extract.stores.webdataset import read_samples
from manifests.tables import Manifest
from tests.archives import extract_all
from tests.data.formats.make import HERE, RUN, TINY, total
from train.checkpoint import load_model, read_record, require_recipe
from train.data import RetrievalData

VALUES: dict[str, Any] = json.loads((HERE / "values.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    with tarfile.open(HERE / "formats.tar.xz") as tar:
        extract_all(tar, root)
    return root


def test_each_store_is_sound(root: Path) -> None:
    stores = ("regions", "tokens", "text_features", "teachers", "pack")
    found = [verify(store=root / TINY / name, manifest=root / TINY / "manifest") for name in stores]
    found += [verify(store=root / "pictures/regions" / split) for split in ("train", "val", "test")]
    assert [one.text() for one in found if one.total] == []


def test_a_manifest(root: Path) -> None:
    manifest, expected = Manifest.open(root / TINY / "manifest"), VALUES["manifest"]
    rows = list(manifest.captioned)
    assert manifest.ids == expected["ids"] and [row.split for row in rows] == expected["splits"]
    assert {key: getattr(rows[-1], key) for key in expected["last"]} == expected["last"]
    assert [text for row in rows for text in row.captions] == expected["captions"]
    assert [id for row in rows for id in row.caption_ids] == expected["caption_ids"]


def test_the_regions_of_a_split(root: Path) -> None:
    store, expected = RegionStore(root / "pictures/regions", "train"), VALUES["regions"]
    regions = [store.regions(row) for row in range(len(store))]
    assert store.ids == expected["ids"] and [list(own.image_size) for own in regions] == expected["sizes"]
    assert [len(own) for own in regions] == expected["counts"]
    assert sum(total(own.features) for own in regions) == pytest.approx(expected["features"], rel=1e-12)
    assert regions[0].features[1, :6].tolist() == expected["feature"] and regions[0].boxes.tolist() == expected["boxes"]
    assert regions[0].objects_id.tolist() == expected["objects"]
    assert regions[0].objects_conf.tolist() == expected["confidences"]
    assert len(RegionStore(root / "pictures/regions")) == len(Manifest.open(root / "pictures/manifest"))


def test_tokens(root: Path) -> None:
    store, expected = TokenStore(root / TINY / "tokens"), VALUES["tokens"]
    assert (store.num_captions, store.text(0), store.vocabulary) == (
        expected["captions"], expected["text"], VALUES["vocabulary"]
    )  # fmt: skip
    assert {name: getattr(store, name)(0).tolist() for name in ("words", "spans", "pos")} == {
        name: expected[name] for name in ("words", "spans", "pos")
    }
    pieces = store.pieces(0)
    assert (pieces.ids.tolist(), pieces.word.tolist()) == (expected["piece_ids"], expected["piece_words"])


def test_text_features_and_teachers(root: Path) -> None:
    states, expected = TextFeatureStore(root / TINY / "text_features"), VALUES["text_features"]
    states.require_tokens(TokenStore(root / TINY / "tokens"))
    first = states.index["shards"][0]["count"]
    assert states.states(first)[0].tolist() == expected["first"]
    found = sum(total(states.states(n)) for n in range(first, len(states)))
    assert found == pytest.approx(expected["states"], rel=1e-12)
    teachers = TeacherStore(root / TINY / "teachers")
    teachers.require_manifest(root / TINY / "manifest")
    stored = [teachers.stored("images", row).tolist() for row in range(len(VALUES["teachers"]))]
    assert stored == VALUES["teachers"]


def test_a_pack(root: Path) -> None:
    expected = VALUES["pack"]
    with open(root / TINY / "pack/tiny-test-000000.tar", "rb") as file:
        sample = next(read_samples(file, "the pack"))
    assert sample.facts["captions"] == expected["facts"]["captions"] and sample.id == expected["facts"]["id"]
    assert sample.facts["tokens"] == expected["facts"]["tokens"]
    assert sample.regions.boxes.tolist() == expected["boxes"]
    assert total(sample.regions.features) == pytest.approx(expected["features"], rel=1e-12)


def test_a_run_its_evaluation_and_an_ensemble(root: Path) -> None:
    folder, data = root / RUN, root / TINY
    model = load_model(folder / "model")
    weights = {name: total(weight) for name, weight in sorted(model.state_dict().items())}
    assert weights == pytest.approx(VALUES["run"], rel=1e-12)
    assert read_record(folder / "model")["settings"]["base"]["name"] == "vsrn"
    split = RetrievalData(data / "manifest", data / "regions", data / "tokens", "test")
    require_recipe(folder / "model", split)
    now, then = embed(model, split, 16, run="aligned"), Embeddings.open(folder / "evaluation", run="aligned")
    for name, expected in VALUES["evaluation"].items():
        np.testing.assert_array_equal(getattr(then, name), np.float32(expected))
        np.testing.assert_allclose(getattr(now, name), np.float32(expected), atol=1e-5)
    ranks = read_ranks(root / "ensembles/both/ranks.npz", fix="")
    assert {name: ranks[name].tolist() for name in VALUES["ensemble"]} == VALUES["ensemble"]
    assert json.loads((folder / "metrics.json").read_text()) == VALUES["metrics"]


def test_an_index(root: Path) -> None:
    index, expected = Index.open(root / "indexes/exact"), VALUES["index"]
    rows, scores = index.images(np.array(index.captions[:1]), 3)
    assert rows[0].tolist() == expected["rows"] and scores[0] == pytest.approx(expected["scores"], abs=1e-6)
    assert [row.id for row in index.rows] == VALUES["manifest"]["ids"]
