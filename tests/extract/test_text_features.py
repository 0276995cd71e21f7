"""The text features stage: the encoder's own states, of the pieces of words, byte for byte again, shard by shard."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel

from extract.check.verify import run as verify
from extract.engine.cache import Cache
from extract.stages import text_features, tokens
from extract.stores.text_features import TextFeatureStore
from extract.stores.tokens import TokenStore
from extract.text import features
from extract.text.encoder import PieceEncoder
from extract.text.settings import TextFeatureSettings, TokenSettings
from manifests.errors import InputError
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from tests.encoders import tiny_config, write_encoder
from tests.extract.region_files import contents
from tests.extract.test_intact import flip

CAPTIONS = (
    ("The blue star, left of the ring.", "A ring"),
    (),
    ("Zebra!", "the ring the ring the ring", "star left star"),
    ("left",),
)


def write_tokens(folder: Path, encoder: Path | None, captions=CAPTIONS, **settings) -> Path:
    rows = [
        CaptionedImage(id=str(number), path="a.png", sha256="0" * 64, width=4, height=3, split="train", captions=texts)
        for number, texts in enumerate(captions)
    ]
    write_manifest(folder / "manifest", rows)
    chosen = TokenSettings(language="blank_en", min_count=1, tokenizer=encoder, **settings)
    tokens.run(manifest=folder / "manifest", settings=chosen, out=folder / "tokens")
    return folder / "tokens"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny bert")


@pytest.fixture(scope="module")
def words(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("words"), encoder)


def make(
    words: Path,
    encoder: Path | str,
    root: Path,
    *,
    batch_size: int = 2,
    exact: bool = False,
    earlier: Path | None = None,
    **settings,
) -> TextFeatureStore:
    settings = {"captions_per_shard": 4, **settings}
    text_features.run(
        dataset="small",
        tokens=words,
        settings=TextFeatureSettings(model=str(encoder), **settings),
        out=root / "text_features",
        cache=root / "cache",
        batch_size=batch_size,
        exact=exact,
        earlier=earlier,
    )
    return TextFeatureStore(root / "text_features")


@pytest.fixture(scope="module")
def store(words: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> TextFeatureStore:
    return make(words, encoder, tmp_path_factory.mktemp("features"))


@torch.inference_mode()
def states_of(encoder: Path, ids: np.ndarray, layer: int = -1) -> np.ndarray:
    """What the encoder itself makes of one caption, alone in its batch."""
    model = BertModel.from_pretrained(encoder).eval()
    pieces = torch.tensor(ids, dtype=torch.int64)[None]
    return model(input_ids=pieces, output_hidden_states=True).hidden_states[layer][0].numpy()


def test_states_are_the_encoders_own_without_special_tokens_and_punctuation(store, words, encoder):
    read = TokenStore(words)
    assert (len(store), store.dim, store.states(0).dtype) == (6, 16, np.float16)
    assert [shard["count"] for shard in store.index["shards"]] == [4, 2]
    for caption in range(6):
        pieces = read.pieces(caption)
        expected = states_of(encoder, pieces.ids)[pieces.word >= 0]
        np.testing.assert_allclose(store.states(caption), expected, rtol=2e-3, atol=2e-3)
    assert read.pieces(0).ids.tolist()[-2:] == [56, 3]  # the full stop and [SEP] are read, and not kept
    assert len(store.states(0)) == 8  # "of" is two pieces
    assert not np.allclose(store.states(0)[0], store.states(0)[6], atol=1e-2)  # the same word in two places


def test_verify_names_what_has_changed(store, tmp_path):
    folder = Path(shutil.copytree(store.folder, tmp_path / "features"))
    assert verify(store=folder).text().startswith(f"sound: {folder} (6 captions, 2 shards; ")
    flip(folder / "000001.h5", 0.9)
    (finding,) = verify(store=folder).findings
    assert str(finding).startswith("000001.h5: sha256 is ")
    (folder / "000001.h5").unlink()
    (finding,) = verify(store=folder).findings
    assert str(finding).startswith("000001.h5: the file is missing")


def test_a_caption_does_not_depend_on_its_batch(store, words, encoder, tmp_path):
    alone = make(words, encoder, tmp_path, batch_size=1, captions_per_shard=1)
    for caption in range(6):
        np.testing.assert_allclose(alone.states(caption), store.states(caption), rtol=2e-3, atol=2e-3)


def test_made_again_the_bytes_are_the_same(store, words, encoder, tmp_path):
    again = make(words, encoder, tmp_path)
    files = sorted(file.name for file in again.folder.iterdir())
    assert files == ["000000.h5", "000001.h5", "README.md", "index.json", "recipe.json"]
    for name in files:
        assert (again.folder / name).read_bytes() == (store.folder / name).read_bytes(), name


class Counter:
    """Runs the stage, and says how many captions went through the encoder, which the stage's last line must say too."""

    def __init__(self, monkeypatch, capfd):
        self.capfd, self.computed, plain = capfd, 0, PieceEncoder.forward

        def forward(encoder, pieces, mask):
            self.computed += len(pieces)
            return plain(encoder, pieces, mask)

        monkeypatch.setattr(PieceEncoder, "forward", forward)

    def __call__(self, *arguments, **settings) -> int:
        self.computed = 0
        self.capfd.readouterr()
        store = make(*arguments, **settings)
        self.said = self.capfd.readouterr().out
        line = f": {len(store)} captions, {self.computed} computed, {len(store) - self.computed} reused\n"
        assert self.said.endswith(line)
        return self.computed


@pytest.fixture
def count(monkeypatch, capfd) -> Counter:
    return Counter(monkeypatch, capfd)


def test_a_killed_run_continues(words, encoder, tmp_path, monkeypatch, count):
    publish = Cache.publish

    def killed(self, draft, content, facts):
        publish(self, draft, content, facts)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            make(words, encoder, tmp_path)
    assert not (tmp_path / "text_features").exists()
    assert count(words, encoder, tmp_path) == 2  # of a second shard's


def test_what_did_not_change_is_not_computed_again(words, encoder, tmp_path, count):
    assert count(words, encoder, tmp_path) == 6
    before = contents(tmp_path / "text_features")
    assert count(words, encoder, tmp_path) == 0 and contents(tmp_path / "text_features") == before
    one = (("The blue star, right of the ring.", "A ring"), *CAPTIONS[1:])
    assert count(write_tokens(tmp_path / "one", encoder, one), encoder, tmp_path) == 1
    assert count(write_tokens(tmp_path / "back", encoder, CAPTIONS[::-1]), encoder, tmp_path) == 0
    assert count(words, encoder, tmp_path, captions_per_shard=2) == 0
    assert count(words, encoder, tmp_path, layer=2) == 0  # the last
    moved = Path(shutil.copytree(encoder, tmp_path / "elsewhere" / "of another name"))
    assert count(words, moved, tmp_path) == 0
    assert count(words, encoder, tmp_path) == 0 and contents(tmp_path / "text_features") == before
    assert count(words, encoder, tmp_path, layer=1) == 6


def test_a_store_of_an_older_project_is_taken_over(store, words, encoder, tmp_path, count):
    """And from then on its states are in the cache."""
    assert count(words, encoder, tmp_path / "new", earlier=store.folder) == 0
    assert contents(tmp_path / "new" / "text_features") == contents(store.folder)
    (tmp_path / "again").mkdir()
    shutil.move(tmp_path / "new" / "cache", tmp_path / "again" / "cache")
    assert count(words, encoder, tmp_path / "again", captions_per_shard=5) == 0
    with pytest.raises(InputError, match=r"its recipe differs .*'layer': -1 here, 0 there"):
        make(words, encoder, tmp_path / "other", earlier=store.folder, layer=0)


def test_exactly_this_environment_is_a_setting(words, encoder, tmp_path, count):
    assert count(words, encoder, tmp_path, batch_size=4) == 6 and count(words, encoder, tmp_path, batch_size=3) == 0
    assert count(words, encoder, tmp_path, batch_size=3, exact=True) == 6
    assert count(words, encoder, tmp_path, batch_size=4, exact=True) == 0


def test_new_code_computes_a_sample_and_takes_what_is_equal(words, encoder, tmp_path, count, monkeypatch):
    captions = tuple((f"the ring {' '.join(['star'] * number)}",) for number in range(12))
    many = write_tokens(tmp_path / "many", encoder, captions)
    assert count(many, encoder, tmp_path) == 12
    before = contents(tmp_path / "text_features")
    monkeypatch.setattr(features, "CODE", "f" * 64)
    make(many, encoder, tmp_path)
    assert contents(tmp_path / "text_features") == before
    monkeypatch.setattr(features, "CODE", "e" * 64)
    monkeypatch.setattr(features.TextFeatures, "difference", lambda *_: "states differ by 3")
    count.computed = 0
    make(many, encoder, tmp_path)
    assert count.computed == 12
    assert re.search(r"new code, other numbers \(caption \d+: states differ by 3\)", count.capfd.readouterr().out)


def test_another_layer(words, encoder, tmp_path):
    inner = make(words, encoder, tmp_path, layer=1)
    pieces = TokenStore(words).pieces(1)
    np.testing.assert_allclose(
        inner.states(1), states_of(encoder, pieces.ids, 1)[pieces.word >= 0], rtol=2e-3, atol=2e-3
    )
    with pytest.raises(InputError, match="no layer 3: .* 0 to 2"):
        make(words, encoder, tmp_path, layer=3)


def test_other_weights_are_another_recipe_and_a_moved_folder_is_not(store, words, encoder, tmp_path):
    moved = Path(shutil.copytree(encoder, tmp_path / "elsewhere" / encoder.name))
    assert make(words, moved, tmp_path / "a").recipe_hash == store.recipe_hash
    write_encoder(moved, seed=1)
    other = make(words, moved, tmp_path / "b")
    assert other.recipe_hash != store.recipe_hash
    assert set(other.recipe["encoder"]["weights_sha256"]) == {"model.safetensors"}


def test_other_captions_are_refused(store, words, encoder, tmp_path):
    store.require_tokens(TokenStore(words))
    other = write_tokens(tmp_path, encoder, CAPTIONS[:3])
    with pytest.raises(InputError, match="made of other captions"):
        store.require_tokens(TokenStore(other))


def test_a_store_is_read_after_a_pickle_and_its_card_runs(store, capsys, monkeypatch):
    assert np.array_equal(pickle.loads(pickle.dumps(store)).states(5), store.states(5))
    with pytest.raises(IndexError):
        store.states(6)
    monkeypatch.chdir(store.folder)
    card = (store.folder / "README.md").read_text()
    found: dict = {}
    exec(card.split("```python\n")[1].split("```")[0], found)
    assert np.array_equal(found["states"], store.states(0))
    assert json.loads((store.folder / "recipe.json").read_text())["recipe_hash"] in card


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("google-bert/none", r"hf download google-bert/none config.json .* --revision v1"),
        ("/nowhere/my bert", r"hf download bert-base-uncased .*--local-dir '/nowhere/my bert'"),
    ],
)
def test_a_missing_encoder_says_where_it_was_looked_for_and_how_to_get_it(words, tmp_path, model, message):
    with pytest.raises(InputError, match=message) as error:
        make(words, model, tmp_path, revision="v1")
    assert model in error.value.where and "Hugging Face cache /" in error.value.where
    assert str(Path(model).absolute()) in error.value.where


def test_a_hub_name_is_found_in_the_cache(store, words, encoder, tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(encoder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = make(words, "someone/tiny", tmp_path)
    assert found.recipe["encoder"]["name"] == "tiny"
    assert found.recipe["encoder"]["weights_sha256"] == store.recipe["encoder"]["weights_sha256"]


def test_settings_that_do_not_fit_are_refused(words, encoder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"lacks config.json and \*.safetensors"):
        make(words, empty, tmp_path)
    short = write_encoder(tmp_path / "short", positions=8)
    with pytest.raises(InputError, match="a caption has 12 word pieces, the encoder reads 8.*max_pieces to 8"):
        make(words, short, tmp_path)
    small = tmp_path / "small"
    config = tiny_config()
    config.vocab_size = 20
    BertModel(config).save_pretrained(small)
    with pytest.raises(InputError, match="tokenizer has 63 entries, the encoder 20"):
        make(words, small, tmp_path)
    plain = write_tokens(tmp_path / "plain", None)
    with pytest.raises(InputError, match="no word pieces.*tokens.tokenizer"):
        make(plain, encoder, tmp_path)
    cut = write_tokens(tmp_path / "cut", encoder, (("“! ring",),), max_pieces=3)
    with pytest.raises(InputError, match="no word piece of caption 0.*belongs to a word"):
        make(cut, encoder, tmp_path)


def test_incomplete_weights_are_refused(words, encoder, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(encoder, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    lost = next(name for name in weights if "layer.1.attention" in name)
    del weights[lost]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="its weights lack 1 tensors"):
        make(words, broken, tmp_path)


@pytest.mark.parametrize("kind", ["t5", "clip", "distilbert", "roberta"])
def test_encoders_of_other_kinds(kind):
    from transformers import AutoConfig, AutoModel

    sizes = {
        "t5": {"d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8},
        "clip": {
            "text_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 63},
            "vision_config": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        },
        "distilbert": {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8},
        "roberta": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    }
    text = {} if kind == "clip" else {"vocab_size": 63}
    encoder = PieceEncoder(AutoModel.from_config(AutoConfig.for_model(kind, **text, **sizes[kind]))).eval()
    pieces = torch.tensor([[2, 5, 6, 3], [2, 9, 3, 0]])
    with torch.inference_mode():
        together = encoder(pieces, torch.tensor([[True] * 4, [True] * 3 + [False]]))
        alone = encoder(pieces[1:, :3], torch.ones(1, 3, dtype=torch.bool))
    assert together.shape == (2, 4, encoder.width) and encoder.width == 8
    torch.testing.assert_close(together[1:, :3], alone, rtol=1e-4, atol=1e-5)
