"""CUSA in training: its terms on every base, what it learns from, and what is refused."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from eval.evaluate import run as evaluate
from eval.metrics.unimodal import caption_recalls
from eval.settings import EvaluationSettings
from eval.validation import validate
from extract.stages import teachers
from extract.stores.hdf5 import MappedHDF5, write_hdf5
from extract.stores.recipe import write_recipe
from extract.teachers.settings import TeacherSettings
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.tables import Manifest, write_manifest
from tests.train.joint_steps import BASES, MadeData, made_model
from train.batches import TeacherBatch
from train.checkpoint import load_model
from train.data import RetrievalData
from train.encoding import similarity
from train.losses.cusa_contrast import CusaContrast, CusaContrastSettings, shared_info_nce
from train.losses.loss import Shape, Step
from train.losses.soft_labels import Temperature, soft_label_kl
from train.settings import RunSettings
from train.train import run

CAPTIONS = [0, 1, 5, 8, 14, 15, 21]
SETTINGS = {
    "dataset": "small",
    "labels": "teachers",
    "epochs": 2,
    "batch_size": 250,
    "learning_rate": 2e-3,
    "accumulate": 2,
    "base": {"name": "camera", "dim": 32, "heads": 2, "views": 2, "dropout": 0.2},
    "text": {"reads": "tokens", "word_dim": 16},
    "losses": {
        "triplet": {},
        "cra": {"num_negatives": 32},
        "cusa_contrast": {},
        "csa": {"weight": 10.0, "teacher_temperature": 0.1},
        "usa": {},
    },
}


@pytest.mark.parametrize("base", BASES)
def test_the_terms_on_every_base(base):
    """CAMERA's three views included: an image's vector is their mean, beside what they share."""
    model, data = made_model(base), MadeData()
    pairs = model(data.region_batch(data.caption_image[CAPTIONS]), data.word_batch(CAPTIONS))
    image, taught = torch.from_numpy(data.caption_image[CAPTIONS]), data.teacher_batch(CAPTIONS)
    terms = model.terms(pairs, image, 0, taught)

    csa, usa = model.losses["csa"], model.losses["usa"]
    vectors = []
    for encoding in (pairs.images, pairs.captions):
        vectors.append(encoding.embedding.mean(1) if encoding.pooled.shape[1] > 1 else encoding.embedding)
    teacher = [F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (taught.images, taught.captions)]
    scores = F.normalize(csa.images(vectors[0]), dim=1) @ F.normalize(csa.captions(vectors[1]), dim=1).T
    contrast = shared_info_nce(scores, 0.05, image[:, None] == image[None]) / len(CAPTIONS)
    across = (soft_label_kl(scores, teacher[0], 0.45, 1.0) + soft_label_kl(scores.T, teacher[1], 0.45, 1.0)) / 2
    own = [F.normalize(head(x), dim=1) for head, x in zip((usa.images, usa.captions), vectors, strict=True)]
    within = sum(soft_label_kl(x @ x.T, s, 0.45, 1.0) for x, s in zip(own, teacher, strict=True)) / 2
    assert terms["cusa_contrast"].item() == pytest.approx(contrast.item(), rel=1e-6)
    assert terms["csa"].item() == pytest.approx(0.1 * across.item(), rel=1e-6)
    assert terms["usa"].item() == pytest.approx(0.5 * within.item(), rel=1e-6)

    (terms["cusa_contrast"] + terms["csa"] + terms["usa"]).backward()
    for name in ("cusa_contrast", "csa", "usa"):
        for parameter in model.losses[name].parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("divided", [True, False])
def test_the_contrast_may_read_the_final_scores(divided):
    options = CusaContrastSettings(reads="embedding", divided=divided)
    loss = CusaContrast(options, Shape(4, 4, 20, 8, (2, 3)), {})
    assert [name for name, _ in loss.named_parameters()] == ["temperature.value"]
    model, data = made_model("vsrn"), MadeData()
    pairs = model(data.region_batch(data.caption_image[CAPTIONS]), data.word_batch(CAPTIONS))
    image = torch.from_numpy(data.caption_image[CAPTIONS])
    step = Step(pairs.images, pairs.captions, image[:, None] == image, pairs.pos, pairs.each, None, 0)
    expected = shared_info_nce(similarity(pairs.images, pairs.captions), 0.05, step.same)
    assert loss(step).item() == pytest.approx(expected.item() / (len(CAPTIONS) if divided else 1), rel=1e-6)


def test_a_temperature_comes_back_into_its_bounds():
    temperature = Temperature(CusaContrastSettings())
    assert temperature().item() == pytest.approx(0.05)
    for value, expected in ((7.0, 0.10), (-1.0, 0.01)):
        with torch.no_grad():
            temperature.value.fill_(value)
        assert temperature().item() == pytest.approx(expected)
        temperature().backward()
        assert temperature.value.grad.item() == 1  # and can move on from there
        temperature.value.grad = None


def test_soft_labels_and_their_losses_go_together():
    for change in ({"labels": "manifest"}, {"losses": {"triplet": {}}}):
        with pytest.raises(ValueError, match="`labels: teachers`"):
            RunSettings(**SETTINGS | change)


def make_teachers(stores: dict[str, Path], out: Path) -> Path:
    teachers.run(
        dataset="small",
        manifest=stores["manifest"],
        regions=stores["regions"],
        images=out,
        settings=TeacherSettings(images={"name": "regions-mean"}, captions={"name": "lsa"}, items_per_shard=500),
        out=out / "teachers",
        cache=out / "cache",
        staging=out / "staging",
    )
    return out / "teachers"


@pytest.fixture(scope="module")
def taught(dataset, tmp_path_factory) -> dict[str, Path]:
    """The small data set with its teachers."""
    return dataset | {"teachers": make_teachers(dataset, tmp_path_factory.mktemp("taught"))}


class Stopped(Exception):
    pass


def train(stores, folder: Path, settings: dict, stop_in: int | None = None) -> None:
    """Train; stop like a killed run in the validation after epoch `stop_in`."""
    seen = []

    def recalls(model, data):
        seen.append(model)
        if len(seen) - 1 == stop_in:
            raise Stopped
        return validate(model, data, 64)

    run(
        name="test", **stores, settings=RunSettings(**settings), validate=recalls, checkpoint_minutes=0,
        out=folder / "model", curves=folder / "epochs.csv", staging=folder / "staging",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(taught, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(taught, folder, SETTINGS)
    return folder


def test_a_run_learns_from_its_teachers(trained, taught):
    with open(trained / "epochs.csv", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert {"triplet", "cra", "cusa_contrast", "csa", "usa"} <= rows[0].keys()
    for term in ("cusa_contrast", "csa", "usa"):
        assert 0 < rows[1][term] < rows[0][term]
    record = json.loads((trained / "model" / "run.json").read_text())
    assert record["teachers"]["captions"]["name"] == "lsa" and "teachers" not in record["recipe"]
    weights = load_file(trained / "model" / "model.safetensors")
    start = {"cusa_contrast.temperature": 0.05, "csa.temperature": 0.45, "usa.temperature": 0.45}
    start["usa.caption_temperature"] = 0.45
    for name, value in start.items():
        assert weights[f"losses.{name}.value"] != torch.tensor(value), name


def test_a_stopped_run_ends_like_an_uninterrupted_one(trained, taught, tmp_path):
    with pytest.raises(Stopped):
        train(taught, tmp_path, SETTINGS, stop_in=1)  # the state is of the step before the epoch's last
    train(taught, tmp_path, SETTINGS)
    files = [folder / "model" / "model.safetensors" for folder in (trained, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_evaluation_needs_no_teachers_and_reports_uni_modal_retrieval(trained, dataset, tmp_path):
    figures = evaluate(
        name="test",
        manifest_dir=dataset["manifest"],
        regions=dataset["regions"],
        tokens=dataset["tokens"],
        model=trained / "model",
        settings=EvaluationSettings(split="test"),
        device="cpu",
        batch_size=64,
        out=tmp_path / "evaluation",
        metrics=tmp_path / "metrics.json",
        correspondence=tmp_path / "correspondence.json",
    )
    assert {"t2t_r1", "t2t_ndcg", "i2i_ndcg"} <= figures["unimodal"].keys() and figures["rsum"] > 0
    vectors = torch.from_numpy(np.load(tmp_path / "evaluation" / "captions.npy").astype(np.float32))
    with torch.no_grad():
        through = load_model(trained / "model").within("captions", vectors)
    data = RetrievalData(**dataset, split="test")
    assert caption_recalls(through.numpy(), data.caption_image)["t2t_r1"] == figures["unimodal"]["t2t_r1"]


def test_the_feed_gives_each_caption_its_own_vectors(taught, tmp_path):
    data = RetrievalData(**taught, split="val")
    rows = list(Manifest.open(taught["manifest"]).captioned)
    first = next(number for number, row in enumerate(rows) if row.split == "val")
    caption = sum(len(row.captions) for row in rows[:first])
    batch = data.teacher_batch([7, 0, 7])
    assert isinstance(batch, TeacherBatch) and batch.images.dtype == torch.float32
    store = data.teacher_store
    np.testing.assert_array_equal(batch.captions, store.embeddings("captions", [caption + 7, caption, caption + 7]))
    second = first + data.caption_image[7]
    np.testing.assert_array_equal(batch.images, store.embeddings("images", [second, first, second]))
    plain = {name: path for name, path in taught.items() if name != "teachers"}
    assert RetrievalData(**plain, split="val").teacher_batch([0]) is None


def test_teachers_that_do_not_belong_are_refused(taught, tmp_path):
    without = {name: path for name, path in taught.items() if name != "teachers"}
    with pytest.raises(InputError, match="it learns from teachers.*dvc repro teachers@"):
        train(without, tmp_path, SETTINGS)
    other, rows = tmp_path / "manifest", list(Manifest.open(taught["manifest"]).captioned)
    write_manifest(other, [replace(rows[0], captions=(*rows[0].captions, "A zebra.")), *rows[1:]])
    with pytest.raises(InputError, match="made of another manifest than .*Fix: run the teachers stage"):
        RetrievalData(**taught | {"manifest": other}, split="train")
    torn = Path(shutil.copytree(taught["teachers"], tmp_path / "teachers"))
    shard = bytearray((torn / "000001.h5").read_bytes())
    shard[-1] ^= 1
    (torn / "000001.h5").write_bytes(shard)
    with pytest.raises(InputError, match=r"000001\.h5: the file has changed"):
        RetrievalData(**taught | {"teachers": torn}, split="train")
    failed = Path(shutil.copytree(taught["teachers"], tmp_path / "failed"))
    image = next(row for row in Manifest.open(taught["manifest"]).images if row.split == "train")
    line = {"id": image.id, "path": image.path, "reason": "the file is empty"}
    (failed / "failures.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=f"'{image.id}' has regions, but no vector of its teacher: the file is empty"):
        RetrievalData(**taught | {"teachers": failed}, split="train")


def test_other_teachers_are_another_run(taught, tmp_path):
    """A state that was saved with other soft labels isn't continued."""
    base = {"name": "vse_infinity", "dim": 16, "position_dim": 4}
    short = {**SETTINGS, "batch_size": 1500, "accumulate": 1, "base": base}
    with pytest.raises(Stopped):
        train(taught, tmp_path, short, stop_in=0)
    changed = Path(shutil.copytree(taught["teachers"], tmp_path / "teachers"))
    recipe = json.loads((changed / "recipe.json").read_text())
    assert len(list((tmp_path / "staging").iterdir())) == 1
    recipe_hash = write_recipe(changed, recipe["recipe"] | {"captions": {"name": "other"}})
    index = json.loads((changed / "index.json").read_text())
    for entry in index["shards"]:
        vectors = MappedHDF5(changed / entry["file"])["embeddings"].copy()
        write_hdf5(changed / entry["file"], {"embeddings": vectors}, {"schema": 1, "recipe_hash": recipe_hash})
        entry["sha256"] = sha256(changed / entry["file"])
    write_json(changed / "index.json", index)
    with pytest.raises(Stopped):
        train(taught | {"teachers": changed}, tmp_path, short, stop_in=0)
    assert len(list((tmp_path / "staging").iterdir())) == 2
