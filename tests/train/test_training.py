"""The training stage on real stores: it learns, it is reproducible, its checkpoints say what they need."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from eval.recall import chance_recalls
from eval.validation import validate
from extract.exchange import export
from extract.stages import tokens
from extract.text.settings import TokenSettings
from manifests.errors import InputError
from manifests.files import fingerprint, sha256, write_json
from tests.extract.exchange_files import Import
from tests.train.conftest import PARAMS
from tests.train.runs import train_run
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData
from train.losses.cra import context_alignment_loss
from train.model import build_model
from train.ranking import all_pairs_triplet
from train.settings import RunSettings

SETTINGS = {
    "dataset": "small",
    "epochs": 8,
    "batch_size": 64,
    "learning_rate": 2e-3,
    "base": {"name": "vsrn", "dim": 64, "graph_layers": 1},
    "text": {"reads": "tokens", "word_dim": 32},
    "losses": {
        "triplet": {"all_negatives_epochs": 8},
        "lca": {"num_concepts": 64},
        "cra": {"weight": 20.0, "temperature": 0.1, "num_negatives": 128},
    },
}


def train(dataset, out, **changes):
    return train_run(dataset, RunSettings(**{**SETTINGS, **changes}), out)


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    return out, train(dataset, out)


def test_both_modules_learn_and_retrieval_beats_chance(dataset, trained):
    out, curve = trained
    first, last = curve[0], curve[-1]
    assert last["lca"] < 0.995 * first["lca"]
    assert last["cra"] < 0.95 * first["cra"]
    model, data = load_model(out / "model"), RetrievalData(**dataset, split="val")
    chance = chance_recalls([len(data.captions_of(image)) for image in range(len(data.images))])
    recalls = validate(model, data, 64)
    for key in ("t2i_r1", "i2t_r1"):
        assert recalls[key] > 6 * chance[key], key


def test_the_best_epoch_is_kept(trained):
    out, curve = trained
    record = json.loads((out / "model" / "run.json").read_text())
    best = max(curve, key=lambda row: row["val_rsum"])
    assert record["best_epoch"] == best["epoch"]
    assert record["val_rsum"] == pytest.approx(best["val_rsum"])


def test_a_checkpoint_gives_the_model_back(dataset, trained):
    out, curve = trained
    data = RetrievalData(**dataset, split="val")
    best = max(curve, key=lambda row: row["val_rsum"])
    assert validate(load_model(out / "model"), data, 64)["rsum"] == pytest.approx(best["val_rsum"])


def test_each_epoch_is_printed_and_the_recalls_at_the_end(dataset, tmp_path, capsys):
    curve = train(dataset, tmp_path, epochs=2, losses={"triplet": {}, "contrast": {"weight": 3}})
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("test: ")]
    assert len(printed) == 3
    best = 0
    for number, (line, row) in enumerate(zip(printed, curve, strict=False)):
        best = number if row["val_rsum"] > curve[best]["val_rsum"] else best
        terms = f"contrast {row['contrast']:.4g}, triplet {row['triplet']:.4g}"
        assert line.startswith(f"test: epoch {number + 1} of 2, mean loss {row['loss']:.4g} ({terms}), ")
        assert row["contrast"] + row["triplet"] == pytest.approx(row["loss"])
        assert f"validation R@sum {row['val_rsum']:.1f}, " in line
        assert line.endswith("the best so far" if best == number else f"in epoch {best + 1}")
    assert printed[2].startswith(f"test: keeps epoch {best + 1} of 2, validation R@sum {curve[best]['val_rsum']:.1f}; ")
    assert f"images for a caption R@1 {curve[best]['val_t2i_r1']:.1f}, R@5 " in printed[2]


def test_equal_seeds_give_equal_weights(dataset, tmp_path):
    for name in ("a", "b"):
        train(dataset, tmp_path / name, epochs=1)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    train(dataset, tmp_path / "c", epochs=1, seed=1)
    assert (tmp_path / "c" / "model" / "model.safetensors").read_bytes() != weights[0]


def test_the_codebook_rests_in_its_frozen_epochs(dataset, tmp_path):
    from safetensors.torch import load_file

    for frozen in (0, 1):
        concept = {"num_concepts": 64, "frozen_epochs": frozen}
        train(dataset, tmp_path / str(frozen), epochs=1, losses={"triplet": {}, "lca": concept})
    moved, fixed = (
        load_file(tmp_path / str(frozen) / "model" / "model.safetensors")["losses.lca.codebook"] for frozen in (0, 1)
    )
    torch.manual_seed(0)
    data = RetrievalData(**dataset, split="train")
    settings = RunSettings(**{**SETTINGS, "losses": {"triplet": {}, "lca": {"num_concepts": 64}}})
    start = build_model(settings, data.region_store.dim, len(data.token_store.vocabulary)).losses["lca"].codebook
    torch.testing.assert_close(fixed, start.detach(), rtol=0, atol=1e-6)
    assert (moved - start).abs().max() > 1e-3


def test_a_diverging_run_stops_with_its_place(dataset, tmp_path):
    with pytest.raises(InputError) as error:
        train(dataset, tmp_path, learning_rate=1e30, gradient_clip=1e30)
    assert re.fullmatch(r"run test, epoch 1, batch [12]", error.value.where)
    assert "triplet" in error.value.what and "images" in error.value.what


def test_a_gradient_that_overflows_never_reaches_the_weights(dataset, tmp_path):
    with pytest.raises(InputError, match=r"epoch 1, batch 1: the gradient's norm is inf \(.*contrast .*e\+30"):
        train(dataset, tmp_path, losses={"triplet": {}, "contrast": {"weight": 1e30}})


def test_a_base_that_looks_at_boxes_refuses_regions_without_any(dataset, tmp_path):
    scan, folder = tmp_path / "scan", tmp_path / "imported"
    export.run(format="scan", dataset="small", **dataset, out=scan)
    for path in (*scan.glob("*_boxes.npy"), *scan.glob("*_img_sizes.npy")):
        path.unlink()
    imported = Import("scan", scan, folder).run()
    tokens.run(manifest=imported.manifest, settings=TokenSettings(**PARAMS["tokens"]), out=folder / "tokens")
    stores = {"manifest": imported.manifest, "regions": folder / "regions", "tokens": folder / "tokens"}
    for base in ({"name": "camera", "dim": 16, "heads": 2}, {"name": "transformer", "dim": 16, "heads": 2}):
        with pytest.raises(InputError, match=f"{base['name']} looks at the regions' boxes.*import the features with"):
            train(stores, tmp_path / base["name"], base=base)
    train(stores, tmp_path / "vsrn", epochs=2, losses={"triplet": {}})
    assert (tmp_path / "vsrn" / "model").is_dir()


def test_words_that_are_never_tagged_as_chosen_are_refused(dataset, tmp_path):
    with pytest.raises(InputError, match="no word of a caption is INTJ or SYM"):
        train(dataset, tmp_path, losses={"lca": {"num_concepts": 8, "parts_of_speech": ["SYM", "INTJ"]}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"lca": {"parts_of_speech": ["NOUNS"]}}}, "'NOUN'"),
        ({"losses": {"lca": {"start_epoch": 3}}, "epochs": 3}, "losses.lca.start_epoch is 3"),
        (
            {"losses": {"alignment": {}, "distillation": {"start_epoch": 4}}, "epochs": 3},
            "losses.distillation.start_epoch is 4",
        ),
        ({"base": {"name": "camera", "dim": 96}}, "64 heads can't share 96 dimensions"),
        ({"losses": {"diversity": {}}}, "base vsrn has one"),
        ({"losses": {}}, "a run without losses learns nothing"),
        ({"losses": {"cusa_contrast": {}}}, "add csa, or set `reads: embedding`"),
    ],
)
def test_settings_that_could_not_train_are_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        RunSettings(**SETTINGS | changes)


def test_other_features_are_refused(dataset, trained, tmp_path):
    other = tmp_path / "val"
    shutil.copytree(dataset["regions"] / "val", other)
    written = json.loads((other / "recipe.json").read_text())
    written["recipe"]["selection"]["nms_threshold"] = 0.5
    written["recipe_hash"] = fingerprint(written["recipe"])
    write_json(other / "recipe.json", written)
    require_recipe(trained[0] / "model", RetrievalData(**dataset, split="val"))
    with h5py.File(other / "000000.h5", "r+") as shard:
        shard.attrs["recipe_hash"] = np.bytes_(written["recipe_hash"].encode())
    index = json.loads((other / "index.json").read_text())
    index["shards"][0]["sha256"] = sha256(other / "000000.h5")
    write_json(other / "index.json", index)
    with pytest.raises(InputError, match=r"'regions.selection.nms_threshold': 0.3 here, 0.5 there"):
        require_recipe(trained[0] / "model", RetrievalData(**{**dataset, "regions": other}, split="val"))


def test_captions_of_one_image_are_no_negatives(dataset, trained):
    """Two captions of one image bar each other, in the triplet and in CRA, and nothing else."""
    model = load_model(trained[0] / "model")
    data = RetrievalData(**dataset, split="val")
    captions = [data.captions_of(image)[0] for image in range(6)] + [data.captions_of(0)[1]]
    images = data.caption_image[np.array(captions)]
    regions, words = data.region_batch(images), data.word_batch(captions)
    same = torch.from_numpy(images[:, None] == images[None, :])
    scores = model.encode_images(regions).embedding @ model.encode_captions(words).embedding.T
    barred = all_pairs_triplet(scores, 0.2, same)
    own = scores.diagonal()
    pair = (0.2 + scores - own[:, None]).clamp(min=0) + (0.2 + scores - own[None, :]).clamp(min=0)
    off = ~torch.eye(7, dtype=torch.bool)
    expected = (pair * (off & ~same)).sum()
    assert barred.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all_pairs_triplet(scores, 0.2).item() > barred.item()

    locals_ = torch.nn.functional.normalize(torch.randn(7, 3, 8), dim=-1)
    globals_ = torch.nn.functional.normalize(torch.randn(7, 8), dim=-1)
    ours = context_alignment_loss(locals_, globals_, same=same)
    each = []
    for i in range(7):
        others = [j for j in range(7) if not same[i, j]]
        negatives = torch.cat([locals_[j] @ globals_[i] for j in others]) / 0.7
        each += [-torch.cat([(x @ globals_[i] / 0.7)[None], negatives]).log_softmax(0)[0] for x in locals_[i]]
    torch.testing.assert_close(ours, torch.stack(each).mean())


def test_a_store_that_has_changed_is_refused(dataset, tmp_path):
    regions = shutil.copytree(dataset["regions"], tmp_path / "regions")
    data = bytearray((regions / "train/000000.h5").read_bytes())
    data[len(data) // 3] ^= 1
    (regions / "train/000000.h5").unlink()
    (regions / "train/000000.h5").write_bytes(data)
    with pytest.raises(InputError, match=r"000000\.h5: the file has changed"):
        train({**dataset, "regions": regions}, tmp_path)
    assert not (tmp_path / "model").exists()
