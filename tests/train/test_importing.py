"""`selfalign import-model`: authors' checkpoints become runs with the same embeddings; what doesn't fit is listed."""

import argparse
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval.evaluate import run as evaluate
from eval.settings import EvaluationSettings
from eval.validation import validate
from manifests.errors import InputError
from train.checkpoint import load_model, read_record
from train.data import RetrievalData
from train.importing import KINDS, Imported, run
from train.model import RetrievalModel, build_model
from train.published import names_of
from train.settings import RunSettings

SETTINGS = {
    "dataset": "small",
    "epochs": 1,
    "base": {"name": "vsrn", "dim": 32, "graph_layers": 2},
    "text": {"reads": "tokens", "word_dim": 8},
    "losses": {"triplet": {}, "lca": {"num_concepts": 8}, "cra": {}},
}


def made(data: RetrievalData, settings: dict[str, Any]) -> RetrievalModel:
    torch.manual_seed(3)
    model = build_model(
        RunSettings(**settings), data.region_store.dim, data.vocabulary_size, boundary_ids=data.boundary_ids
    )
    for name, parameter in model.state_dict().items():
        if "norm" in name and parameter.is_floating_point():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model.eval()


def as_published(model: RetrievalModel) -> list[dict[str, Tensor]]:
    """The state of a model as the authors' code saves it: two encoders, graph layers as convolutions."""
    parts = []
    for side in ("images", "captions"):
        names = {ours: theirs for theirs, ours in names_of(model, side).items() if ours}
        part = {}
        for name, tensor in model.state_dict().items():
            begin = max((ours for ours in names if name.startswith(ours)), key=len, default=None)
            if begin is not None:
                theirs = names[begin] + name.removeprefix(begin)
                convolution = theirs.startswith("Rs_GCN") and tensor.dim() == 2
                part[theirs] = tensor[..., None].clone() if convolution else tensor.clone()
        parts.append(part)
    return parts


def save(path: Path, parts: list[dict[str, Tensor]]) -> Path:
    options = argparse.Namespace(data_name="f30k_precomp", embed_size=32, logger=Path("runs"))
    torch.save({"epoch": 9, "model": parts, "best_rsum": 400.0, "opt": options, "Eiters": 7}, path)
    return path


def write_words(path: Path, words: list[str]) -> Path:
    """A vocabulary with the words in another order, as JSON or as a pickled object."""
    rows = {word: row for row, word in enumerate(words)}
    if path.suffix == ".json":
        path.write_text(json.dumps({"word2idx": rows, "idx": len(rows)}))
        return path
    module = types.ModuleType("vocab")
    module.Vocabulary = type("Vocabulary", (), {"__module__": "vocab"})
    sys.modules["vocab"] = module
    vocabulary = module.Vocabulary()
    vocabulary.word2idx, vocabulary.idx = rows, len(rows)
    path.write_bytes(pickle.dumps(vocabulary, 2))
    del sys.modules["vocab"]
    return path


@pytest.fixture(scope="module")
def published(dataset, tmp_path_factory) -> tuple[RetrievalModel, RetrievalData, Path, Path]:
    """A model, data, its checkpoint with words in another order and a word more, and the vocabulary's file."""
    folder = tmp_path_factory.mktemp("published")
    data = RetrievalData(**dataset, split="val")
    model, own = made(data, SETTINGS), data.token_store.vocabulary
    words = ["<pad>", "<start>", "<end>", "<unk>", "zebra", *reversed(own[4:])]
    parts = as_published(model)
    rows = parts[1]["embed.weight"]
    parts[1]["embed.weight"] = torch.stack([rows[own.index(w)] if w in own else torch.ones(8) for w in words])
    return model, data, save(folder / "best.pth.tar", parts), write_words(folder / "vocab.json", words)


def imported(dataset, out: Path, file: Path, vocabulary: Path | None, **changes: Any) -> Imported:
    return run(
        kind=changes.pop("kind", "selfalign-vsrn"),
        file=file,
        name="published",
        settings=RunSettings(**{**SETTINGS, **changes}),
        **dataset,
        validate=lambda model, data: validate(model, data, 64),
        out=out / "model",
        curves=out / "epochs.csv",
        vocabulary=vocabulary,
    )


@pytest.mark.parametrize("kind", [".json", ".pkl"])
def test_a_checkpoint_becomes_a_run_with_the_same_embeddings(published, dataset, tmp_path: Path, kind: str) -> None:
    model, data, file, vocabulary = published
    if kind == ".pkl":
        rows = json.loads(vocabulary.read_text())["word2idx"]
        vocabulary = write_words(tmp_path / "vocab.pkl", list(rows))
    found = imported(dataset, tmp_path, file, vocabulary)
    assert f"0 of the data set's {data.vocabulary_size} words aren't in it, 1 of its" in found.notes[0]
    again = load_model(tmp_path / "model")
    images, captions = data.region_batch(range(8)), data.word_batch(range(12))
    torch.testing.assert_close(again.encode_images(images).embedding, model.encode_images(images).embedding)
    torch.testing.assert_close(again.encode_captions(captions).embedding, model.encode_captions(captions).embedding)
    record = read_record(tmp_path / "model")
    assert record["imported"]["kind"] == "selfalign-vsrn" and record["val_rsum"] == found.recalls["rsum"]
    assert set(record["settings"]["losses"]) == {"triplet", "cra"}  # the codebook isn't in the file
    header, row = (tmp_path / "epochs.csv").read_text().splitlines()
    assert header.startswith("epoch,") and "val_rsum" in header and row.startswith("0,")
    figures = evaluate(
        name="published",
        manifest_dir=dataset["manifest"],
        regions=dataset["regions"],
        tokens=dataset["tokens"],
        model=tmp_path / "model",
        settings=EvaluationSettings(split="test"),
        device="cpu",
        batch_size=64,
        out=tmp_path / "evaluation",
        metrics=tmp_path / "metrics.json",
        correspondence=tmp_path / "correspondence.json",
    )
    assert figures["rsum"] > 0


def test_parameters_that_do_not_fit_are_listed(published, dataset, tmp_path: Path) -> None:
    model, _, _, vocabulary = published
    parts = as_published(model)
    images, captions = parts
    captions["embed.weight"] = torch.zeros(len(json.loads(vocabulary.read_text())["word2idx"]), 8)
    del images["img_rnn.bias_hh_l0"]
    images["Rs_GCN_3.g.weight"] = torch.zeros(32, 32, 1)
    images["fc.weight"] = images["fc.weight"][:, :-1]
    images["teacher.head"] = torch.zeros(3)
    with pytest.raises(InputError) as error:
        imported(dataset, tmp_path, save(tmp_path / "x.pth.tar", parts), vocabulary)
    message = str(error.value)
    for part in (
        "missing: base.images.gru.bias_hh_l0",
        "unexpected: Rs_GCN_3.g.weight, teacher.head",
        f"fc.weight is [32, {images['fc.weight'].shape[1]}], base.images.projection.weight is [32, ",
    ):
        assert part in message
    assert not (tmp_path / "model").exists()


def test_unneeded_parameters_are_named(published, dataset, tmp_path: Path) -> None:
    model, _, _, vocabulary = published
    images, captions = as_published(model)
    captions["embed.weight"] = torch.zeros(len(json.loads(vocabulary.read_text())["word2idx"]), 8)
    images["prototypes"] = torch.zeros(3)
    found = imported(dataset, tmp_path, save(tmp_path / "x.pth.tar", [images, captions]), vocabulary)
    assert found.notes[-1] == "not read, since nothing here needs it: prototypes"


def test_a_checkpoint_of_another_kind_is_refused(published, dataset, tmp_path: Path) -> None:
    _, _, file, vocabulary = published
    plain = {"losses": {"triplet": {}}}
    for changes, message in (
        ({"kind": "camera"}, "its base is vsrn, and checkpoints of camera are of camera"),
        (plain, "it has no losses.cra.*Fix: add `cra"),
        ({"kind": "vsrn"}, "it has losses.cra.*use selfalign-vsrn"),
        (plain | {"kind": "vsrn"}, "give the run losses cra"),
    ):
        with pytest.raises(InputError, match=message):
            imported(dataset, tmp_path, file, vocabulary, **changes)
    with pytest.raises(InputError, match="--vocabulary FILE"):
        imported(dataset, tmp_path, file, None)
    with pytest.raises(InputError, match="it doesn't say which row"):
        imported(dataset, tmp_path, file, write_words_without(tmp_path))
    torch.save({"model": 3}, tmp_path / "no.pth.tar")
    with pytest.raises(InputError, match="holds no parameters"):
        imported(dataset, tmp_path, tmp_path / "no.pth.tar", vocabulary)
    (tmp_path / "bad.pth.tar").write_bytes(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00idq\x00\x85R.")
    with pytest.raises(InputError, match=r"bad\.pth\.tar: not a checkpoint"):
        imported(dataset, tmp_path, tmp_path / "bad.pth.tar", vocabulary)


def write_words_without(folder: Path) -> Path:
    (folder / "w.json").write_text('{"word2idx": ["a"]}')
    return folder / "w.json"


def test_the_command_offers_every_kind() -> None:
    from pipeline.cli import MODELS

    assert set(MODELS) == set(KINDS)
