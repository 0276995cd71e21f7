"""The teachers stage: every teacher's own vectors, of length 1, in the manifest's order, shard by shard."""

import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BertModel, ViTModel

from extract.cards.card import run as run_card
from extract.check import verify
from extract.engine.finished import Finished
from extract.stages import teachers
from extract.stores.recipe import write_recipe
from extract.stores.regions import INDEX, Regions, region_index, write_shard
from extract.stores.teachers import TeacherStore
from extract.teachers.settings import TeacherSettings
from extract.teachers.vision import VisionSettings, find_vision_model
from manifests.errors import InputError
from manifests.files import sha256, write_json
from manifests.schema import CaptionedImage
from manifests.tables import Manifest, write_manifest
from tests.encoders import write_encoder
from tests.extract.region_files import contents
from tests.extract.teacher_models import SIDE, write_clip, write_vit

CAPTIONS = (
    ("The blue star, left of the ring.", "A ring"),
    ("Zebra!",),
    ("The star, the ring", "left"),
    (),
    ("Blue ring left", "!!!"),
)
SPLITS = ("train", "train", "val", "train", "test")
TEXTS = [text for own in CAPTIONS for text in own]
BUILT_IN = {"images": {"name": "regions-mean"}, "captions": {"name": "lsa"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures, their manifest, and regions of all but the fourth."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    rows, kept = [], []
    for number, captions in enumerate(CAPTIONS):
        path = root / "images" / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(path)
        facts = {"path": path.name, "sha256": sha256(path), "width": 30, "height": 20}
        rows.append(CaptionedImage(id=f"p{number}", **facts, split=SPLITS[number], captions=captions))
        if number != 3:
            features = rng.standard_normal((2 + number, 6)).astype(np.float16)
            kept.append((f"p{number}", Regions(features, np.tile(np.float32([0, 0, 9, 9]), (2 + number, 1)), (30, 20))))
    write_manifest(root / "manifest", rows)
    folder = root / "regions"
    recipe_hash = write_recipe(folder, {"detector": {"name": "written by a test"}})
    ids, regions = zip(*kept, strict=True)
    write_shard(folder / "000000.h5", ids, regions, recipe_hash, dim=6, dense=None, id_bytes=2)
    shard = {"file": "000000.h5", "count": 4, "first": ids[0], "last": ids[-1], "sha256": sha256(folder / "000000.h5")}
    write_json(folder / INDEX, region_index([shard], dim=6, dense=None, object_names=None, attribute_names=None))
    return root


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vit(tmp_path_factory.mktemp("vit") / "tiny vit")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert") / "tiny bert")


def make(world: Path, root: Path, *, batch_size: int = 2, **settings) -> TeacherStore:
    settings = {**BUILT_IN, "items_per_shard": 3, **settings}
    teachers.run(
        dataset="small",
        manifest=world / "manifest",
        regions=world / "regions",
        images=world / "images",
        settings=TeacherSettings(**settings),
        out=root / "teachers",
        cache=root / "cache",
        staging=root / "staging",
        batch_size=batch_size,
        caption_batch=batch_size,
    )
    return TeacherStore(root / "teachers")


def pictures(vit: Path, pooling: str = "pooler", **settings) -> dict:
    return {"images": {"name": "vision", "model": str(vit), "pooling": pooling, **settings}}


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def store(world: Path, tmp_path_factory: pytest.TempPathFactory) -> TeacherStore:
    return make(world, tmp_path_factory.mktemp("built in"))


def test_regions_mean_is_the_mean_less_that_of_the_train_split(store, world):
    import h5py

    shard = h5py.File(world / "regions" / "000000.h5")
    offsets = shard["offsets"][:]
    parts = np.split(shard["features"][:].astype(np.float32), offsets[1:-1])
    means = np.stack([part.mean(0) for part in parts])
    found = store.embeddings("images", range(5))
    assert found.shape == (5, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found[[0, 1, 2, 4]], unit(means - means[:2].mean(0)), atol=2e-3)
    assert not found[3].any()
    assert store.failures() == {"p3": "the region store has no regions of it"}


def test_lsa_finds_captions_alike_by_their_words(store):
    # The train split has three captions: there are no more directions.
    assert store.dims["captions"] == 3 and store.count("captions") == len(TEXTS) == 7
    found = store.embeddings("captions", range(7))
    np.testing.assert_allclose(np.linalg.norm(found[:6], axis=1), 1, atol=1e-6)
    likeness = found @ found.T
    assert likeness[0, 3] > 0.5 and abs(likeness[2, :2]).max() < 1e-2  # nothing is like a zebra
    assert likeness[5, 1] > likeness[5, 2]
    assert not found[6].any()  # none of its words is known


def test_lsa_with_all_dimensions_has_the_cosines_of_tf_idf(store):
    import math
    import re

    train = [re.findall(r"\w+", text.lower()) for text in TEXTS[:3]]
    listed = sorted({word for own in train for word in own})
    idf = {word: math.log(4 / (1 + sum(word in own for own in train))) + 1 for word in listed}

    def vector(words):
        return unit(np.array([(1 + math.log(words.count(w))) * idf[w] if w in words else 0.0 for w in listed]))

    known = [vector(re.findall(r"\w+", text.lower())) for text in TEXTS[:3]]
    found = store.embeddings("captions", range(3))
    np.testing.assert_allclose(found @ found.T, np.array(known) @ np.array(known).T, atol=2e-3)


def test_lsa_keeps_the_dimensions_that_say_most(world, tmp_path):
    small = make(world, tmp_path, captions={"name": "lsa", "dim": 2})
    assert small.dims["captions"] == 2 and small.recipe["captions"]["dim"] == 2
    found = small.embeddings("captions", [0, 3])
    assert found[0] @ found[1] > 0.9


@torch.inference_mode()
def vit_states(vit: Path, world: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pooled output and mean state of every picture, from the model itself and Pillow's own bilinear resizing."""
    model = ViTModel.from_pretrained(vit).eval()
    pixels = [
        np.asarray(Image.open(world / "images" / f"{n}.png").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        for n in range(5)
    ]
    out = model(torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return out.pooler_output.numpy(), out.last_hidden_state.mean(1).numpy()


def test_a_vision_model_looks_at_whole_pictures(world, vit, tmp_path):
    pooled, mean = vit_states(vit, world)
    for pooling, expected in (("pooler", pooled), ("mean", mean)):
        made = make(world, tmp_path / pooling, **pictures(vit, pooling))
        cosines = (made.embeddings("images", range(5)) * unit(expected)).sum(1)
        assert cosines.min() > 0.995, (pooling, cosines)  # resizing differs in its last digits
        assert made.dims["images"] == 24 and made.failures() == {}
    alone = make(world, tmp_path / "alone", batch_size=1, **pictures(vit, "mean"))
    np.testing.assert_allclose(alone.embeddings("images", range(5)), made.embeddings("images", range(5)), atol=2e-3)


def test_the_vision_half_of_clip_is_taken(world, tmp_path):
    made = make(world, tmp_path, **pictures(write_clip(tmp_path / "clip"), "cls"))
    assert made.dims["images"] == 8
    found = made.embeddings("images", range(5))
    assert np.abs(found @ found.T - np.eye(5)).max() < 1  # five pictures, five vectors


@torch.inference_mode()
def bert_states(bert: Path, texts: list[str]) -> list[np.ndarray]:
    model, tokenizer = BertModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    return [
        model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].numpy() for text in texts
    ]


def test_a_text_encoder_gives_the_mean_of_its_states(world, bert, tmp_path):
    made = make(world, tmp_path, captions={"name": "sentences", "model": str(bert)})
    expected = np.stack([states.mean(0) for states in bert_states(bert, TEXTS)])
    np.testing.assert_allclose(made.embeddings("captions", range(7)), unit(expected), atol=2e-3)
    assert made.recipe["captions"]["pooling"] == "mean"


def write_sentence_transformer(folder: Path, bert: Path, pooling: str, *modules: str, **facts) -> Path:
    """A folder as sentence-transformers writes it, with the encoder in a folder of its own."""
    shutil.copytree(bert, folder / "0_Transformer")
    write_json(folder / "0_Transformer" / "sentence_bert_config.json", facts)
    kinds = {"Transformer": "0_Transformer", "Pooling": "1_Pooling", **dict.fromkeys(modules, "2_More")}
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(kinds.items())
    ]
    write_json(folder / "modules.json", listed)
    modes = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens")}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, **modes})
    return folder


def test_a_sentence_transformers_folder_says_how_it_pools(world, bert, tmp_path):
    facts = {"max_seq_length": 6, "do_lower_case": True}
    folder = write_sentence_transformer(tmp_path / "st", bert, "cls_token", "Normalize", **facts)
    made = make(world, tmp_path, captions={"name": "sentences", "model": str(folder)})
    assert made.recipe["captions"]["pooling"] == "cls" and made.recipe["captions"]["name"] == "st"
    assert made.recipe["captions"]["tokenizer"]["max_pieces"] == 6
    tokenizer, model = AutoTokenizer.from_pretrained(bert), BertModel.from_pretrained(bert).eval()
    ids = tokenizer(TEXTS[0].lower(), truncation=True, max_length=6)["input_ids"]
    with torch.inference_mode():
        first = model(input_ids=torch.tensor([ids])).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(made.embeddings("captions", [0])[0], unit(first), atol=2e-3)


def test_the_package_sentence_transformers_gives_the_same(world, bert, tmp_path):
    package = pytest.importorskip("sentence_transformers")
    folder = write_sentence_transformer(tmp_path / "st", bert, "mean_tokens", "Normalize", max_seq_length=12)
    made = make(world, tmp_path, captions={"name": "sentences", "model": str(folder)})
    expected = package.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(made.embeddings("captions", range(7)), expected, atol=2e-3)


def test_timm_comes_through_transformers(world, tmp_path):
    folder = tmp_path / "resnet"
    folder.mkdir()
    write_json(folder / "config.json", {"architecture": "resnet10t", "num_classes": 0, "pretrained_cfg": {}})
    (folder / "model.safetensors").write_bytes(b"")
    try:
        import timm
    except ImportError:
        with pytest.raises(InputError, match="timm's models need the package timm.*pip install timm"):
            make(world, tmp_path, **pictures(folder))
        return
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=0).eval()
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    shape = {
        "input_size": [3, 64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    config = {"architecture": "resnet10t", "num_classes": 0, "num_features": 512, "pretrained_cfg": shape}
    write_json(folder / "config.json", config)
    made = make(world, tmp_path, **pictures(folder))
    assert made.dims["images"] == 512
    assert np.linalg.matrix_rank(made.embeddings("images", range(5)).astype(np.float64), tol=1e-3) > 1


def test_made_again_the_bytes_are_the_same(store, world, tmp_path):
    again = make(world, tmp_path)
    files = sorted(file.name for file in again.folder.iterdir())
    shards = [f"{number:06d}.h5" for number in range(5)]
    assert files == [*shards, "README.md", "failures.jsonl", "index.json", "recipe.json"]
    assert [(shard["of"], shard["count"]) for shard in again.index["shards"]] == [
        ("images", 3), ("images", 2), ("captions", 3), ("captions", 3), ("captions", 1),
    ]  # fmt: skip
    for name in files:
        assert (again.folder / name).read_bytes() == (store.folder / name).read_bytes(), name


def test_a_killed_run_continues(store, world, tmp_path, monkeypatch, capfd):
    publish, made = Finished.publish, []

    def killed(self, *arguments):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(arguments)
        return publish(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Finished, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            make(world, tmp_path)
    assert not (tmp_path / "teachers").exists()
    again = make(world, tmp_path)
    # Five images and seven captions, in shards of three: all five were done, one of them in vain.
    assert "12 images and captions, 7 computed, 4 reused, 1 left out" in capfd.readouterr().out
    assert again.failures() == store.failures()  # those of a shard that was made before the kill, too
    assert contents(again.folder) == contents(store.folder) and not any((tmp_path / "staging").iterdir())


def test_a_models_vectors_are_kept_by_picture_and_caption(world, vit, bert, tmp_path, capfd):
    def made(rows: list[CaptionedImage], **settings) -> str:
        write_manifest(tmp_path / "world" / "manifest", rows)
        make(
            tmp_path / "world",
            tmp_path,
            **{**pictures(vit), "captions": {"name": "sentences", "model": str(bert)}, **settings},
        )
        return re.search(r"(\d+) computed, \d+ reused\n$", capfd.readouterr().out)[1]

    shutil.copytree(world, tmp_path / "world")
    rows = list(Manifest.open(world / "manifest").captioned)
    assert made(rows) == "12"
    before = contents(tmp_path / "teachers")
    assert made(rows) == "0" and contents(tmp_path / "teachers") == before
    assert made([replace(rows[0], captions=("Another one.", *rows[0].captions[1:])), *rows[1:]]) == "1"
    assert made(rows[::-1]) == "0" and made(rows, items_per_shard=2) == "0"
    assert made([replace(row, id=f"other {row.id}", split="test") for row in rows[:3]]) == "0"
    assert made(rows) == "0" and contents(tmp_path / "teachers") == before


def test_rows_are_read_from_any_shard_in_any_order(store):
    found = store.embeddings("captions", [6, 0, 3, 0])
    np.testing.assert_array_equal(found, store.embeddings("captions", range(7))[[6, 0, 3, 0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).embeddings("captions", [6, 0, 3, 0]), found)
    for rows in ([7], [-1]):
        with pytest.raises(IndexError):
            store.embeddings("captions", rows)


def test_the_card_runs(store, monkeypatch):
    monkeypatch.chdir(store.folder)
    card, found = (store.folder / "README.md").read_text(), {}
    exec(card.split("```python\n")[1].split("```")[0], found)
    np.testing.assert_allclose(found["embedding"], store.embeddings("images", [0])[0], atol=1e-3)
    assert store.recipe_hash in card and "1 images have no vector" in card


def test_other_weights_are_another_recipe_and_a_moved_folder_is_not(world, vit, tmp_path):
    moved = Path(shutil.copytree(vit, tmp_path / "elsewhere" / vit.name))
    first, second = (make(world, tmp_path / n, **pictures(folder)) for n, folder in (("a", vit), ("b", moved)))
    assert first.recipe_hash == second.recipe_hash
    write_vit(moved, seed=1)
    assert make(world, tmp_path / "c", **pictures(moved)).recipe_hash != first.recipe_hash


@pytest.mark.parametrize(
    ("settings", "role", "message"),
    [
        (
            {"images": {"name": "vision", "model": "google/none"}},
            "image teacher",
            "hf download google/none --include",
        ),
        (
            {"images": {"name": "vision", "model": "models/vit"}},
            "image teacher",
            r"if a folder, .*`hf download google/vit-base-patch16-224-in21k [^`]* --local-dir models/vit`",
        ),
        (
            {"captions": {"name": "sentences", "model": "nobody/none"}},
            "caption teacher",
            r"hf download nobody/none --include '\*\.json' --include",
        ),
        (
            {"captions": {"name": "sentences", "model": "/nowhere/my model"}},
            "caption teacher",
            r"hf download sentence-transformers/all-MiniLM-L6-v2 .*--local-dir '/nowhere/my model'",
        ),
    ],
)
def test_a_missing_teacher_says_where_it_was_looked_for_and_how_to_get_it(world, tmp_path, settings, role, message):
    with pytest.raises(InputError, match=message) as error:
        make(world, tmp_path, **settings)
    model = next(iter(settings.values()))["model"]
    assert error.value.where.startswith(f"{role} {model!r}") and "Hugging Face cache /" in error.value.where
    assert str(Path(model).absolute()) in error.value.where


def test_a_hub_name_is_found_in_the_cache(world, vit, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--someone--vit"
    shutil.copytree(vit, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert make(world, tmp_path, **pictures("someone/vit")).recipe["images"]["name"] == "vit"


def test_settings_that_do_not_fit_are_refused(world, vit, bert, tmp_path):
    plain = write_vit(tmp_path / "plain", pooler=False)
    with pytest.raises(InputError, match="its weights lack 2 tensors, the first 'pooler") as error:
        make(world, tmp_path, **pictures(plain))
    assert error.value.fix == "set teachers.D.images.pooling to cls or mean"
    make(world, tmp_path, **pictures(plain, "cls"))
    (plain / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"lacks preprocessor_config\.json"):
        make(world, tmp_path, **pictures(plain, "cls"))
    dense = write_sentence_transformer(tmp_path / "dense", bert, "mean_tokens", "Dense")
    with pytest.raises(InputError, match="made of Transformer, Pooling, Dense.*choose a model without these parts"):
        make(world, tmp_path, captions={"name": "sentences", "model": str(dense)})
    most = write_sentence_transformer(tmp_path / "most", bert, "max_tokens")
    with pytest.raises(InputError, match=r"its pooling is pooling_mode_max_tokens.*captions\.pooling"):
        make(world, tmp_path, captions={"name": "sentences", "model": str(most)})
    with pytest.raises(ValueError, match="the teacher lsa finds captions alike, not images"):
        TeacherSettings(**BUILT_IN | {"images": {"name": "lsa"}})


def test_a_picture_that_cannot_be_read(world, vit, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(world, torn)
    rows = list(Manifest.open(torn / "manifest").captioned)
    (torn / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="has changed since the manifest was made"):
        make(torn, tmp_path, **pictures(vit))
    rows[1] = replace(rows[1], sha256=sha256(torn / "images" / "1.png"))
    write_manifest(torn / "manifest", rows)
    with pytest.raises(InputError, match="'p1' can't be read.*teachers.D.unreadable: skip"):
        make(torn, tmp_path, **pictures(vit))
    made = make(torn, tmp_path, unreadable="skip", **pictures(vit))
    assert list(made.failures()) == ["p1"] and not made.embeddings("images", [1]).any()
    assert made.embeddings("images", [0, 2, 3, 4]).any(1).all()


def findings(folder: Path, world: Path) -> list[str]:
    return [str(f) for f in verify.run(store=folder, manifest=world / "manifest").findings]


def test_verify_names_what_is_wrong(store, world, tmp_path):
    assert findings(store.folder, world) == []
    copy = Path(shutil.copytree(store.folder, tmp_path / "copy"))
    shard = bytearray((copy / "000000.h5").read_bytes())
    shard[-5:-2] = b"\x00\x40\x00"  # numbers of the last row
    (copy / "000000.h5").write_bytes(shard)
    (copy / "000004.h5").unlink()
    (copy / "failures.jsonl").write_text("")
    messages = findings(copy, world)
    assert any("000000.h5: sha256 is" in line for line in messages)
    assert any("000000.h5 row 2 (p2): the vector's length is" in line for line in messages)
    assert any("000001.h5 row 0 (p3): the vector is all zeros" in line for line in messages)
    assert any("000004.h5: the file is missing" in line for line in messages)
    rows = list(Manifest.open(world / "manifest").captioned)
    other = tmp_path / "manifest"
    write_manifest(other, [replace(row, captions=(*row.captions, "Zebras!")) for row in rows])
    assert any("made of another manifest" in str(f) for f in verify.run(store=store.folder, manifest=other).findings)


def test_a_folder_that_lacks_files_is_not_taken_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models/vit").mkdir(parents=True)
    with pytest.raises(InputError, match=r"lacks config\.json.*--local-dir models/vit`") as error:
        find_vision_model(VisionSettings(model="models/vit"))
    assert "name of the hub" not in error.value.fix


@pytest.mark.parametrize("model", ["../vit", "./vit", "vit.", "a--b"])
def test_a_folder_that_is_not_there_is_not_taken_for_a_name(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such folder.*--local-dir") as error:
        find_vision_model(VisionSettings(model=model))
    assert model in error.value.where and "name of the hub" not in error.value.fix


def test_card_and_verify_say_what_the_store_holds(store, world, tmp_path):
    manifest = world / "manifest"
    text = verify.run(store=store.folder, manifest=manifest).text()
    assert "(5 images, 7 captions, 12 vectors, 5 shards; " in text
    copy = Path(shutil.copytree(store.folder, tmp_path / "copy"))
    card = run_card(copy)
    assert card.text == (store.folder / "README.md").read_text() and card.findings == []
    with pytest.raises(InputError, match="no licence and no citation"):
        run_card(copy, licence="CC BY 4.0")
    (copy / "000001.h5").unlink()
    (copy / "README.md").unlink()
    shard, readme = run_card(copy).findings
    assert shard.startswith("000001.h5: the file is missing") and readme.startswith("README.md: can't be read")
