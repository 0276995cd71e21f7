"""Embeddings, validation and matches with a model whose answers are known, and the whole stage on a trained one."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from demo.scenes.describing import WORDS
from eval import cost
from eval.arrays import save_arrays
from eval.embed import embed
from eval.evaluate import run
from eval.matching.correspondence import accuracy, centred, match_words, read_matches, region_objects
from eval.report.inspection import run as inspect
from eval.settings import EvaluationSettings
from eval.validation import validate
from manifests.errors import InputError
from manifests.grounding import read_grounding
from tests.eval.data_files import ATTRIBUTES, AttributeModel, draw_data_set, retrieval_data
from train import train
from train.data import RetrievalData
from train.encoding import similarity
from train.model import build_model
from train.settings import RunSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(folder: Path) -> RetrievalData:
    return retrieval_data(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> AttributeModel:
    return AttributeModel(folder)


def test_embeddings_do_not_depend_on_the_batch_size(model: AttributeModel, data: RetrievalData):
    one, many = embed(model, data, 1, run="r", quiet=True), embed(model, data, 64, run="r", quiet=True)
    assert one.pooled.dtype == np.float32 and one.pooled.shape[:2] == (8, 1) and one.num_captions == data.num_captions
    for name in ("pooled", "context", "captions"):
        assert np.allclose(getattr(one, name), getattr(many, name), atol=1e-6)


def test_scores_of_many_views_and_a_context_are_the_models(data: RetrievalData, folder: Path):
    settings = RunSettings(
        dataset="demo",
        epochs=1,
        base={"name": "camera", "dim": 32, "heads": 2, "views": 3},
        text={"reads": "tokens", "word_dim": 4},
        losses={"triplet": {}, "cra": {}},
        bag={"num_concepts": 6},
    )
    network = build_model(settings, len(ATTRIBUTES), len(data.token_store.vocabulary)).eval()
    found = embed(network, data, 5, run="r", quiet=True)
    assert found.pooled.shape == (8, 3, 32) and found.context.shape[1] > 32
    with torch.inference_mode():
        everything = range(len(data.images)), range(data.num_captions)
        seen, read = data.region_batch(everything[0]), data.word_batch(everything[1])
        scores = similarity(network.encode_images(seen), network.encode_captions(read)).numpy()
    assert np.allclose(found.block(slice(0, 8), slice(0, data.num_captions)), scores, atol=1e-5)


def test_the_model_keeps_its_mode(model: AttributeModel, data: RetrievalData):
    model.train()
    embed(model, data, 8, run="r", quiet=True)
    assert model.training


def test_validation_finds_images_by_their_attributes(model: AttributeModel, data: RetrievalData):
    figures = validate(model, data, 16)
    assert figures["t2i_r1"] > 50  # chance is 12.5
    recalls = [value for key, value in figures.items() if key.endswith(("_r1", "_r5", "_r10"))]
    assert len(recalls) == 6 and figures["rsum"] == pytest.approx(sum(recalls), abs=1e-3)


def test_nan_embeddings_name_the_run(data: RetrievalData, folder: Path):
    with pytest.raises(InputError, match="run vsrn-x, caption 2.*NaN"):
        embed(AttributeModel(folder, broken=2), data, 64, run="vsrn-x", quiet=True)


def test_words_match_regions_with_their_attribute(model: AttributeModel, data: RetrievalData, folder: Path):
    matches = match_words(model, data, 4)
    truth = read_grounding(folder / "manifest" / "grounding.jsonl")
    meaning = {word: value for words in WORDS.values() for word, value in words.items()}
    checked = 0
    for row in range(len(matches.caption)):
        caption = int(matches.caption[row])
        word = data.caption_text(caption)[matches.start[row] : matches.end[row]].lower()
        if word not in meaning or matches.cosine[row] == 0:
            continue  # a word about nothing, or a texture in a caption that was not drawn
        image = int(data.caption_image[caption])
        assert meaning[word] in truth[data.images[image].id].labels[matches.region[row]].values()
        checked += 1
    assert checked > 100
    found = accuracy(matches, data, truth)
    assert found["ceiling"] == 1
    assert found["accuracy"] > found["chance"] + 0.3
    assert found["fitting"] > found["accuracy"] + 0.05 and found["fitting_chance"] > found["chance"]


def test_accuracy_of_the_truth_and_of_the_background(data: RetrievalData, folder: Path, model: AttributeModel):
    truth = read_grounding(folder / "manifest" / "grounding.jsonl")
    found = match_words(model, data, 16)
    right, wrong = found.region.copy(), np.full_like(found.region, 7)
    for row in range(len(found.caption)):
        caption = int(found.caption[row])
        image = int(data.caption_image[caption])
        for phrase in truth[data.images[image].id].phrases[data.captions_of(image).index(caption)]:
            if phrase.start < found.end[row] and found.start[row] < phrase.end:
                right[row] = phrase.object
    perfect = accuracy(replace(found, region=right), data, truth)
    assert perfect["accuracy"] == perfect["fitting"] == perfect["pointing"] == 1
    assert set(perfect["kinds"]) == {"shape", "colour", "texture", "size"}
    assert sum(kind["words"] for kind in perfect["kinds"].values()) == perfect["words"]
    background = accuracy(replace(found, region=wrong), data, truth)
    assert background["accuracy"] == background["pointing"] == 0

    # Chance: exactly one of the eight regions is each object.
    assert perfect["chance"] == pytest.approx(1 / 8)
    boxes = np.array(truth[data.images[0].id].boxes)
    assert region_objects(data.regions(0).boxes, boxes)[: len(boxes)].tolist() == list(range(len(boxes)))


def test_centres_point_at_boxes():
    objects = np.array([[10, 10, 30, 30], [40, 0, 60, 20]])
    part, whole, beside = [12, 12, 18, 18], [0, 0, 40, 40], [30, 10, 42, 30]
    assert centred(np.array([part, whole, beside]), objects).tolist() == [[True, False], [True, False], [False, False]]


def test_no_known_object_gives_no_figure(model: AttributeModel, data: RetrievalData):
    assert accuracy(match_words(model, data, 16), data, {}) is None


def test_matches_survive_their_file(model: AttributeModel, data: RetrievalData, tmp_path: Path):
    matches = match_words(model, data, 16)
    save_arrays(tmp_path / "a.npz", matches.arrays())
    save_arrays(tmp_path / "b.npz", matches.arrays())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    stored = read_matches(tmp_path / "a.npz", fix="")
    assert all(np.array_equal(stored.arrays()[name], column) for name, column in matches.arrays().items())
    assert [matches.caption[row] for row in matches.rows(3)] == [3] * len(data.caption_words(3))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `demo`, whose region store lacks the last two test images, and `run/model`, trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    demo = draw_data_set(folder, leave_out=2)
    settings = {
        "dataset": "demo",
        "epochs": 1,
        "batch_size": 16,
        "base": {"name": "vsrn", "dim": 8, "graph_layers": 1},
        "text": {"reads": "tokens", "word_dim": 4},
        "losses": {
            "triplet": {},
            "lca": {"num_concepts": 8},
            "cra": {"num_negatives": 16},
            "alignment": {},
            "distillation": {"weight": 10.0},
        },
    }
    train.run(
        name="tiny",
        manifest=demo / "manifest",
        regions=demo / "regions",
        tokens=demo / "tokens",
        settings=RunSettings(**settings),
        validate=lambda model, data: validate(model, data, 16),
        out=folder / "run" / "model",
        curves=folder / "run" / "epochs.csv",
        staging=folder / "staging",
    )
    return folder


def evaluate(folder: Path, out: Path, batch_size: int = 16, model: Path | None = None) -> dict:
    return run(
        name="tiny",
        manifest_dir=folder / "demo" / "manifest",
        regions=folder / "demo" / "regions",
        tokens=folder / "demo" / "tokens",
        model=model or folder / "run" / "model",
        settings=EvaluationSettings(),
        device="cpu",
        batch_size=batch_size,
        out=out / "evaluation",
        metrics=out / "metrics.json",
        correspondence=out / "correspondence.json",
    )


def test_the_stage_counts_what_was_left_out_and_writes_the_same_twice(trained: Path, tmp_path: Path):
    figures = evaluate(trained, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "evaluation" / "figures.json").read_text()) == figures
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics.pop("words_on_object") == pytest.approx(100 * figures["correspondence"]["accuracy"], abs=0.01)
    assert len(metrics) == 7 and metrics == {name: figures[name] for name in metrics}
    assert (figures["images"], figures["captions"], figures["left_out"]) == (6, 30, 2)
    assert figures["chance"]["t2i_r1"] == pytest.approx(100 / 6, abs=1e-3)
    assert set(figures["ndcg"]["rouge_l"]) == {"i2t", "t2i"} and 0 < figures["ndcg"]["rouge_l"]["i2t"] <= 100
    assert set(figures["unimodal"]) >= {"i2i_ndcg", "t2t_ndcg", "t2t_r1"} and "eccv" not in figures
    low, high = figures["interval"]["rsum"]
    assert low <= figures["rsum"] <= high and "folds" not in figures
    modes = figures["modes"]
    assert modes["student"] == {key: figures[key] for key in modes["student"]} and "t2i_r1" in modes["student"]
    assert modes["teacher"]["rsum"] > 0
    assert modes["reranked"] == modes["teacher"] | {"candidates": 50}  # more than there are
    assert 0 <= figures["correspondence"]["accuracy"] <= figures["correspondence"]["ceiling"] == 1
    evaluate(trained, tmp_path / "b")
    written = sorted((tmp_path / "a" / "evaluation").iterdir())
    assert [path.name for path in written] == [
        *("captions.npy", "concepts.npz", "context.npy", "correspondence.jsonl", "figures.json"),
        *("matches.npz", "pooled.npy", "ranks.npz"),
    ]
    correspondence = json.loads((tmp_path / "a" / "correspondence.json").read_text())
    assert correspondence["concepts"]["size"] == 8 and correspondence["parts_of_speech"]["NOUN"]["words"] > 30
    pairs = [json.loads(line) for line in (tmp_path / "a" / "evaluation" / "correspondence.jsonl").open()]
    assert len(pairs) == 30 and {"word", "region", "box", "concept", "region_concept"} <= set(pairs[0]["words"][0])
    assert sum(len(pair["words"]) for pair in pairs) == sum(
        own["words"] for own in correspondence["parts_of_speech"].values()
    )
    for path in [*written, tmp_path / "a" / "metrics.json", tmp_path / "a" / "correspondence.json"]:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_the_batch_size_does_not_change_the_figures(trained: Path, tmp_path: Path):
    one, many = evaluate(trained, tmp_path / "a", batch_size=1), evaluate(trained, tmp_path / "b", batch_size=64)
    for graded in ("ndcg", "unimodal"):  # a hardly trained model's captions are nearly one: their order is of last bits
        first, second = one.pop(graded), many.pop(graded)
        assert first.get("rouge_l", first) == pytest.approx(second.get("rouge_l", second), abs=0.01)
    assert one == many


def test_equal_captions_have_equal_embeddings(data: RetrievalData, folder: Path, monkeypatch: pytest.MonkeyPatch):
    class Noisy(AttributeModel):
        """Its embeddings depend on the place in the batch, as a real network's last bits do."""

        def encode_captions(self, batch):
            encoded = super().encode_captions(batch)
            return replace(encoded, pooled=encoded.pooled + 1e-6 * torch.arange(len(encoded.pooled))[:, None, None])

    monkeypatch.setattr(RetrievalData, "caption_text", lambda self, caption: str(caption % 7))
    captions = embed(Noisy(folder), data, 3, run="r", quiet=True).captions
    assert np.array_equal(captions, captions[np.arange(len(captions)) % 7])
    assert len(np.unique(captions[:7], axis=0)) > 1


def test_a_diverged_run_stops_the_stage_and_is_named(trained: Path, tmp_path: Path):
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "run.json").write_bytes((trained / "run" / "model" / "run.json").read_bytes())
    weights = load_file(trained / "run" / "model" / "model.safetensors")
    bias = next(name for name in weights if name.startswith("base.captions") and "bias" in name)
    weights[bias] = torch.full_like(weights[bias], float("nan"))
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(InputError, match="run tiny, caption 0"):
        evaluate(trained, tmp_path / "out", model=broken)
    assert not (tmp_path / "out" / "metrics.json").exists()


@pytest.mark.parametrize(("caption", "suffix"), [(None, ".html"), (2, ".html"), (2, ".png")])
def test_inspect_draws_and_tells_what_a_word_matched(trained: Path, tmp_path: Path, caption: int | None, suffix: str):
    image = retrieval_data(trained / "demo").images[1]
    text = inspect_caption(trained, tmp_path / f"seen{suffix}", image.id, caption)
    evaluate(trained, tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / "evaluation" / "correspondence.jsonl").open()]
    chosen = [pair for pair in pairs if pair["image"] == image.id and pair["number"] in (caption or pair["number"],)]
    assert text.count(f"{image.id}, caption") == len(chosen) == (5 if caption is None else 1)
    rows = [line.split()[:4] for line in text.splitlines()]
    for pair in chosen:
        for word in pair["words"]:
            assert [word["word"], word["pos"], str(word["region"]), f"{word['cosine']:.2f}"] in [
                row[:4] for row in rows
            ]
    if suffix == ".png":
        with Image.open(tmp_path / "seen.png") as drawn:
            assert drawn.width == 1200 and len(np.unique(np.asarray(drawn.convert("L")))) > 50
    else:
        page = (tmp_path / "seen.html").read_text()
        assert page.count("<article") == len(chosen) and page.count('<img src="data:image/') == len(chosen)
        assert "truth" in page and not re.findall(r"https?://|url\((?!data:)", page)


@pytest.mark.parametrize(
    ("image", "caption", "out", "said"),
    [
        ("nothing", None, "a.html", "there is no image 'nothing'"),
        ("", 6, "a.html", "has 5 captions, there is no caption 6"),
        ("", 1, "a.pdf", "can't draw to '.pdf'"),
    ],
)
def test_inspect_names_a_mistake(trained: Path, tmp_path: Path, image: str, caption: int | None, out: str, said: str):
    image = image or retrieval_data(trained / "demo").images[0].id
    with pytest.raises(InputError, match=said):
        inspect_caption(trained, tmp_path / out, image, caption)
    assert not any(tmp_path.iterdir())


def inspect_caption(trained: Path, out: Path, image: str, caption: int | None) -> str:
    """`selfalign inspect` on the run of `trained`."""
    return inspect(
        name="tiny",
        image=image,
        caption=caption,
        manifest_dir=trained / "demo" / "manifest",
        image_root=trained / "scenes" / "images",
        regions=trained / "demo" / "regions",
        tokens=trained / "demo" / "tokens",
        model=trained / "run" / "model",
        device="cpu",
        out=out,
    )


def test_the_cost_of_a_run_is_reported_in_whole(trained: Path, tmp_path: Path):
    modes = evaluate(trained, tmp_path)["modes"]
    found = cost.run(
        name="tiny",
        manifest=trained / "demo" / "manifest",
        regions=trained / "demo" / "regions",
        tokens=trained / "demo" / "tokens",
        model=trained / "run" / "model",
        split="test",
        device="cpu",
        repeats=1,
        candidates=(1000, 20_000),
        figures=tmp_path / "evaluation" / "figures.json",
        out=tmp_path / "cost.json",
    )
    assert json.loads((tmp_path / "cost.json").read_text()) == found
    assert found["cross_attention_reckoned"] == ["20000"] and found["views"] == 1 and found["dims"] == 8 * 3
    for figures in (found["encode_ms"], found["search_ms"], found["cross_attention_ms"]):
        assert all(value > 0 for value in figures.values())
    text = cost.table(found)
    assert "20,000" in text and "tiny" in text and "reranked: " in text
    assert {mode: figures["rsum"] for mode, figures in found["modes"].items()} == {m: modes[m]["rsum"] for m in modes}
    assert all(figures["query_ms"] > 0 for figures in found["modes"].values())
