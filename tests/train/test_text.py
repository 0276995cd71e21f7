"""The kinds of words on real stores: learned embeddings, cached states, an encoder in the loop, frozen or tuned."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.matching.correspondence import match_words
from eval.validation import validate
from extract.stages import text_features, tokens
from extract.text.settings import TextFeatureSettings, TokenSettings
from manifests.errors import InputError
from tests.encoders import ENTRIES, write_encoder
from tests.train.conftest import PARAMS
from tests.train.runs import train_run
from train.checkpoint import load_model, require_recipe
from train.data import RetrievalData
from train.model import build_model
from train.settings import RunSettings
from train.words import CachedStates, Transformer, WordEmbedding

BASES = {
    "vsrn": {"name": "vsrn", "dim": 32, "graph_layers": 1},
    "camera": {"name": "camera", "dim": 32, "heads": 2, "views": 3},
    "vse_infinity": {"name": "vse_infinity", "dim": 32, "position_dim": 4},
}
# One encoder for both sides: it has no cached states.
SHARED = {"transformer": {"name": "transformer", "dim": 16, "layers": 1, "heads": 2, "head_layers": 1}}


@pytest.fixture(scope="module")
def pieces(dataset: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small data set with word pieces, its text features, and the folder of their encoder."""
    root = tmp_path_factory.mktemp("pieces")
    encoder = write_encoder(root / "encoder")
    chosen = TokenSettings(**PARAMS["tokens"], tokenizer=encoder)
    tokens.run(manifest=dataset["manifest"], settings=chosen, out=root / "tokens")
    text_features.run(
        dataset="small",
        tokens=root / "tokens",
        settings=TextFeatureSettings(model=str(encoder)),
        out=root / "text_features",
        cache=root / "cache",
    )
    return {**dataset, "tokens": root / "tokens", "text_features": root / "text_features", "encoder": encoder}


def settings(text: dict, base: str = "camera", **changes) -> RunSettings:
    values = {"dataset": "small", "epochs": 1, "batch_size": 64, "learning_rate": 2e-3, "base": (BASES | SHARED)[base]}
    values["losses"] = {"triplet": {}} | ({"generation": {"dim": 16}} if base == "vsrn" else {})
    return RunSettings(**{**values, "text": {"word_dim": 16, **text}, **changes})


def kinds(pieces: dict[str, Path]) -> dict[str, dict]:
    encoder = {"model": str(pieces["encoder"])}
    return {
        "words": {"reads": "tokens"},
        "cached": {"reads": "text_features"},
        "frozen": {"reads": "tokens", "encoder": {**encoder, "tune": False}},
        "tuned": {"reads": "tokens", "encoder": encoder},
    }


def data_of(pieces: dict[str, Path], chosen: RunSettings, split: str = "train") -> RetrievalData:
    cached = pieces["text_features"] if chosen.text.reads == "text_features" else None
    stores = {name: pieces[name] for name in ("manifest", "regions", "tokens")}
    return RetrievalData(**stores, split=split, pieces=chosen.text.pieces, text_features=cached)


def model_of(data: RetrievalData, chosen: RunSettings):
    torch.manual_seed(0)
    return build_model(
        chosen, data.region_store.dim, data.vocabulary_size, text_dim=data.text_dim, boundary_ids=data.boundary_ids
    )


def train(pieces: dict[str, Path], chosen: RunSettings, out: Path) -> list[dict[str, float]]:
    read = ["manifest", "regions", "tokens", *(["text_features"] if chosen.text.reads == "text_features" else [])]
    return train_run({name: pieces[name] for name in read}, chosen, out)


def test_a_batch_of_pieces_knows_its_words(pieces: dict[str, Path]) -> None:
    chosen = settings({"reads": "text_features"})
    data = data_of(pieces, chosen)
    batch = data.word_batch([0, 7, 3])
    assert batch.features.dtype == torch.float16 and batch.features.shape == (*batch.mask.shape, 16)
    assert not batch.features[~batch.mask].any() and not batch.words[~batch.mask].any()
    assert (data.vocabulary_size, data.boundary_ids) == (len(ENTRIES), (2, 3))
    for row, caption in enumerate((0, 7, 3)):
        words = data.caption_words(caption)
        letters: dict[int, str] = {}
        for id, word, pos in zip(batch.words[row], batch.word[row], batch.pos[row], strict=True):
            letters[int(word)] = letters.get(int(word), "") + ENTRIES[id].removeprefix("##").replace("[PAD]", "")
            assert not id or data.token_store.pos_names[pos] == words[word].pos
        assert [letters[number] for number in range(len(words))] == [word.text for word in words]


@pytest.mark.parametrize("base", BASES)
def test_cached_states_are_those_of_the_frozen_encoder_in_the_loop(pieces: dict[str, Path], base: str) -> None:
    losses, start = {}, {}
    for kind in ("cached", "frozen"):
        chosen = settings(kinds(pieces)[kind], base)
        data = data_of(pieces, chosen)
        model = model_of(data, chosen).train()
        start = start or {name: value.clone() for name, value in model.state_dict().items()}
        assert not model.load_state_dict(start, strict=False).unexpected_keys
        own = [parameter for name, parameter in model.named_parameters() if not name.startswith("words.")]
        optimizer = torch.optim.Adam(own, lr=1e-3)
        captions = np.arange(0, 300, 5)
        images = data.caption_image[captions]
        batch = data.word_batch(captions)
        states = model.words(batch)
        losses[kind] = [states[batch.mask]]
        for _ in range(3):
            torch.manual_seed(2)
            pairs = model(data.region_batch(images), batch)
            loss = sum(model.terms(pairs, torch.from_numpy(images), 0).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[kind].append(loss.detach())
        assert all(parameter.grad is None for parameter in model.words.parameters())
    torch.testing.assert_close(losses["cached"][0], losses["frozen"][0], rtol=2e-3, atol=2e-3)
    for cached, looped in zip(losses["cached"][1:], losses["frozen"][1:], strict=True):
        assert cached.item() == pytest.approx(looped.item(), rel=0.01)
    assert losses["cached"][3] < losses["cached"][1]


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        *((kind, "camera") for kind in ("words", "cached", "frozen", "tuned")),
        *((kind, "transformer") for kind in ("words", "frozen", "tuned")),
    ],
)
def test_every_kind_trains_and_its_checkpoint_needs_no_encoder(pieces, tmp_path, kind: str, base: str) -> None:
    folder = Path(shutil.copytree(pieces["encoder"], tmp_path / "encoder"))
    changes = {"epochs": 2, "losses": {"triplet": {"all_negatives_epochs": 2}}}
    if base == "transformer":
        changes["losses"] |= {"alignment": {"all_negatives_epochs": 2}, "distillation": {}}
    chosen = settings(kinds({**pieces, "encoder": folder})[kind], base, **changes)
    curve = train(pieces, chosen, tmp_path)
    assert curve[1]["loss"] < curve[0]["loss"]
    start = model_of(data_of(pieces, chosen), chosen).words
    shutil.rmtree(folder)
    model, data = load_model(tmp_path / "model"), data_of(pieces, chosen, "val")
    require_recipe(tmp_path / "model", data)
    best = max(curve, key=lambda row: row["val_rsum"] + row.get("val_teacher_rsum", 0))["val_rsum"]
    assert validate(model, data, 64)["rsum"] == pytest.approx(best, abs=0.01)
    kinds_of = {"words": WordEmbedding, "cached": CachedStates, "frozen": Transformer, "tuned": Transformer}
    assert type(model.words) is kinds_of[kind]
    if kind in ("frozen", "tuned"):
        same = [torch.equal(a, b) for a, b in zip(start.parameters(), model.words.parameters(), strict=True)]
        assert all(same) if kind == "frozen" else not any(same)
    matches = match_words(model, data, 64)
    assert len(matches.caption) == sum(len(data.caption_words(caption)) for caption in range(data.num_captions))


def test_a_frozen_encoder_is_never_in_training_mode(pieces: dict[str, Path]) -> None:
    for kind, training in (("frozen", False), ("tuned", True)):
        chosen = settings(kinds(pieces)[kind])
        model = model_of(data_of(pieces, chosen), chosen).train()
        assert {module.training for module in model.words.encoder.modules()} == {training}
        assert model.base.captions.training
        model.eval()
        assert not any(module.training for module in model.modules())


def test_an_encoder_can_be_handed_over(pieces: dict[str, Path]) -> None:
    from transformers import BertModel

    from tests.encoders import tiny_config

    chosen = settings({"reads": "tokens", "encoder": {"model": "nobody/nothing", "tune": False}})
    data = data_of(pieces, chosen)
    bert = BertModel(tiny_config())
    dims = (data.region_store.dim, data.vocabulary_size)
    model = build_model(chosen, *dims, encoder=bert)
    assert model.encode_captions(data.word_batch([0, 1])).embedding.shape == (2, 32)
    with pytest.raises(InputError, match="nobody/nothing.*hf download nobody/nothing"):
        build_model(chosen, *dims)


def test_missing_parts_of_a_run_are_named(dataset: dict[str, Path], pieces: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no text features"):
        build_model(settings({"reads": "text_features"}), 8, 20)
    with pytest.raises(InputError, match=r"no word pieces.*tokens\.tokenizer"):
        RetrievalData(**dataset, split="val", pieces=True)
    with pytest.raises(InputError, match="made of other captions"):
        RetrievalData(**dataset, split="val", text_features=pieces["text_features"])
    with pytest.raises(ValueError, match="cached states: leave encoder out"):
        settings({"reads": "text_features", "encoder": {"model": "x"}})
    with pytest.raises(InputError, match="no ids for a caption's start and end"):
        build_model(settings({"reads": "text_features"}, "vsrn"), 8, 20, text_dim=4, boundary_ids=(None, None))
