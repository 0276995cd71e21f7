"""The word stage and the token store: words, places, parts of speech, vocabulary, word pieces, bytes."""

import json
import multiprocessing
import pickle
import shutil
from operator import methodcaller
from pathlib import Path

import h5py
import numpy as np
import pytest
import spacy
from pydantic import ValidationError

from demo.scenes.describing import PARTS_OF_SPEECH
from extract.stages import tokens
from extract.stores.tokens import TokenStore
from extract.text.settings import TokenSettings
from extract.text.vocabulary import SPECIAL
from manifests.errors import InputError
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest

CAPTIONS = {
    "one": ("train", ("A striped ring, left of the blue star.", "The ring is blue")),
    "nought": ("train", ()),
    "twö.jpg": ("train", ("A ring\u00a0…  and a small star!",)),
    "three": ("val", ("“Naïve” CAFÉ 東京 😀 doesn't sell a T-shirt", "zebra zebra zebra")),
    "four": ("test", ("A ring",)),
}


def manifest_of(folder: Path, captions: dict[str, tuple[str, tuple[str, ...]]]) -> Path:
    path = folder / "manifest"
    rows = [
        CaptionedImage(id=id, path="a.png", sha256="0" * 64, width=4, height=3, split=split, captions=texts)
        for id, (split, texts) in captions.items()
    ]
    write_manifest(path, rows)
    return path


def made(folder: Path, captions: dict = CAPTIONS, out: str = "tokens", **settings) -> TokenStore:
    settings = TokenSettings(**({"language": "scenes", "min_count": 1} | settings))
    tokens.run(manifest=manifest_of(folder, captions), settings=settings, out=folder / out)
    return TokenStore(folder / out)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return made(tmp_path_factory.mktemp("store"))


def test_captions_are_kept_as_written_and_lead_back_to_their_images(store):
    texts = [text for _, captions in CAPTIONS.values() for text in captions]
    assert [store.text(caption) for caption in range(store.num_captions)] == texts
    assert store.image_ids == list(CAPTIONS)
    assert [list(store.captions_of(image)) for image in range(5)] == [[0, 1], [], [2], [3, 4], [5]]
    assert [store.image(caption) for caption in range(6)] == [0, 0, 2, 3, 3, 4]
    assert store.first_caption.tolist() == [0, 2, 2, 3, 5, 6]
    for read, number in ((store.words, 6), (store.text, -1), (store.image, -1), (store.captions_of, 5)):
        with pytest.raises(IndexError):
            read(number)


def test_words_are_lower_cased_without_punctuation_and_spans_lead_to_them(store):
    assert store.word_texts(0) == ["a", "striped", "ring", "left", "of", "the", "blue", "star"]
    assert store.word_texts(2) == ["a", "ring", "and", "a", "small", "star"]
    assert store.word_texts(3) == ["naïve", "café", "東京", "😀", "does", "n't", "sell", "a", "t", "shirt"]
    for caption in range(store.num_captions):
        text, spans, words = store.text(caption), store.spans(caption), store.words(caption)
        assert (words.dtype, spans.dtype, spans.shape) == (np.int32, np.int32, (len(words), 2))
        assert (spans[1:, 0] >= spans[:-1, 1]).all()
        for number, (start, end) in zip(words, spans, strict=True):
            word = text[start:end].lower()
            assert store.vocabulary[number] == (word if word in store.vocabulary else "<unk>")


def test_vocabulary_is_of_train_alone_by_falling_count_then_alphabet(store):
    # train holds a 3, ring 3, star 2, the 2, blue 2 and the rest once
    assert store.vocabulary == [
        "<pad>", "<unk>", "<start>", "<end>",
        "a", "ring", "blue", "star", "the", "and", "is", "left", "of", "small", "striped",
    ]  # fmt: skip
    assert [store.vocabulary[word] for word in store.words(4)] == ["<unk>"] * 3


def test_rare_words_become_unknown(tmp_path):
    store = made(tmp_path, min_count=2)
    assert store.vocabulary[len(SPECIAL) :] == ["a", "ring", "blue", "star", "the"]
    assert [store.vocabulary[word] for word in store.words(0)] == [
        "a", "<unk>", "ring", "<unk>", "<unk>", "the", "blue", "star"
    ]  # fmt: skip
    assert store.word_texts(0)[1] == "striped"


def test_a_word_written_like_a_special_entry_is_unknown(tmp_path):
    nlp = spacy.blank("en")
    nlp.tokenizer.add_special_case("<pad>", [{"ORTH": "<pad>"}])
    nlp.to_disk(tmp_path / "model")
    store = made(tmp_path, {"a": ("train", ("pad <pad>",))}, language=str(tmp_path / "model"))
    assert store.word_texts(0) == ["pad", "<pad>"]
    assert store.vocabulary == [*SPECIAL, "pad"]
    assert store.words(0).tolist() == [4, 1]


def test_parts_of_speech_of_the_demos_words(tmp_path):
    words = {word: tag for word, tag in PARTS_OF_SPEECH.items() if tag != "PUNCT"}
    store = made(tmp_path, {"a": ("train", (" ".join(words), " ".join(words).upper(), "ring unheard"))})
    for caption in (0, 1):
        assert store.word_texts(caption) == list(words)
        assert [store.pos_names[tag] for tag in store.pos(caption)] == list(words.values())
    assert [store.pos_names[tag] for tag in store.pos(2)] == ["NOUN", "X"]
    assert {"NOUN", "ADJ", "ADP", "DET", "VERB", "AUX"} <= set(words.values())


def test_blank_english_has_the_same_words_and_no_parts_of_speech(tmp_path, store):
    blank = made(tmp_path, language="blank_en")
    assert [blank.word_texts(c) for c in range(6)] == [store.word_texts(c) for c in range(6)]
    assert {blank.pos_names[tag] for c in range(6) for tag in blank.pos(c)} == {"X"}
    assert blank.recipe_hash != store.recipe_hash


def test_a_pipeline_from_a_folder_gives_its_tags_and_names_itself(tmp_path):
    nlp = spacy.blank("en", meta={"name": "tiny", "version": "1.2.3"})
    nlp.add_pipe("attribute_ruler").add([[{"LOWER": "ring"}]], {"POS": "PROPN"})
    nlp.add_pipe("sentencizer")
    nlp.to_disk(tmp_path / "tiny")
    store = made(tmp_path, {"a": ("train", ("A ring.",))}, language=str(tmp_path / "tiny"))
    assert [store.pos_names[tag] for tag in store.pos(0)] == ["X", "PROPN"]
    assert store.recipe["language"].items() >= {"name": "en_tiny", "version": "1.2.3"}.items()


def test_spacys_bare_pipeline_of_a_language_is_named_as_spacy_does(tmp_path):
    store = made(tmp_path, {"a": ("train", ("一只狗",))}, language="blank:zh")
    assert store.word_texts(0) == ["一", "只", "狗"] and store.recipe["language"] == {"name": "blank:zh"}


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en_core_web_nowhere", "python -m spacy download en_core_web_nowhere"),
        ("models/nowhere", "no such folder"),
        ("blank:qq", "blank: and a language's code"),
        ("blank_zh", "such as blank:zh"),
    ],
)
def test_a_missing_pipeline_says_how_to_get_it(tmp_path, language, said):
    with pytest.raises(InputError, match=said) as error:
        made(tmp_path, language=language)
    assert language in error.value.where
    assert "http" not in str(error.value)
    assert not (tmp_path / "tokens").exists()


def test_a_folder_that_is_no_pipeline_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="config.cfg") as error:
        made(tmp_path, language=str(tmp_path / "model"))
    assert error.value.where == str(tmp_path / "model")


def test_a_long_caption_is_cut_and_counted(tmp_path, store, tokenizer, capsys):
    long = "a striped ring, left of the star. " * 3000
    captions = CAPTIONS | {"long": ("train", (long, "A ring", "ring " * 256, "x" * 100_000))}
    cut = made(tmp_path, captions, tokenizer=tokenizer)
    assert "2 captions were cut to 256 words" in capsys.readouterr().out.splitlines()
    assert "2 captions were cut to 256 words" in (tmp_path / "tokens" / "README.md").read_text()
    assert (
        cut.text(6) == long and cut.word_texts(6) == (["a", "striped", "ring", "left", "of", "the", "star"] * 40)[:256]
    )
    assert len(cut.spans(6)) == len(cut.pos(6)) == len(cut.words(8)) == 256 and len(cut.words(7)) == 2
    assert len(cut.pieces(6).ids) < 1000 and cut.pieces(6).word.max() == 255
    assert len(cut.text(9)) == 100_000 and len(cut.pieces(9).ids) < 20_000

    few = made(tmp_path, out="few", max_words=2)
    assert few.word_texts(0) == ["a", "striped"] and few.recipe["max_words"] == 2
    assert "max_words" not in cut.recipe and store.recipe_hash == made(tmp_path, out="same").recipe_hash
    assert "5 captions were cut to 2 words" in capsys.readouterr().out.splitlines()


def test_a_caption_without_a_word_names_image_and_caption(tmp_path):
    with pytest.raises(InputError, match="caption 1, '... !', has no word left") as error:
        made(tmp_path, {"a": ("train", ("ring",)), "b": ("val", ("star", "... !"))})
    assert "'b'" in error.value.where
    assert [path.name for path in tmp_path.iterdir()] == ["manifest"]


def test_half_a_character_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"'captions\[1\]' has half of a surrogate pair at character 5") as error:
        manifest_of(tmp_path, {"a": ("train", ("star", "ring \ud83d"))})
    assert error.value.where.endswith("images.arrow row 0")


def test_without_train_captions_another_vocabulary_is_needed(tmp_path, store):
    captions = {"a": ("test", ("A ring is a zebra",))}
    with pytest.raises(InputError, match="train split.*`vocabulary`"):
        made(tmp_path, captions)
    reused = made(tmp_path, captions, vocabulary=store.path / "vocabulary.json")
    assert reused.vocabulary == store.vocabulary
    assert [reused.vocabulary[word] for word in reused.words(0)] == ["a", "ring", "is", "a", "<unk>"]
    assert reused.recipe["vocabulary_sha256"] == store.recipe["vocabulary_sha256"]


def test_images_without_any_caption_make_an_empty_store(tmp_path, store):
    for vocabulary in (store.path / "vocabulary.json", None):
        empty = made(tmp_path, {"a": ("test", ()), "b": ("train", ())}, vocabulary=vocabulary)
        assert (empty.num_captions, empty.image_ids, empty.captions_of(1)) == (0, ["a", "b"], range(0, 0))
        assert empty.vocabulary == (store.vocabulary if vocabulary else list(SPECIAL))


@pytest.mark.parametrize(
    ("content", "said"),
    [('["a"]', "begin with <pad>"), ("{", "not valid JSON"), ('{"a": 1}', "should be a valid array"),
     (json.dumps([*SPECIAL, "a", "b", "a"]), "'a' twice"), (None, "No such file")],
)  # fmt: skip
def test_a_bad_vocabulary_is_an_error(tmp_path, content, said):
    path = tmp_path / "words.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=said):
        made(tmp_path, vocabulary=path)


def test_a_vocabulary_without_words_is_an_error(tmp_path):
    with pytest.raises(InputError, match="lower min_count"):
        made(tmp_path, min_count=100)


def test_settings_are_closed(tmp_path):
    for bad in ({"min_cuont": 1}, {"min_count": 0}, {"max_pieces": 8}):
        with pytest.raises(ValidationError):
            TokenSettings(**bad)


def test_same_captions_same_bytes(tmp_path, store):
    again = made(tmp_path)
    for name in ("tokens.h5", "vocabulary.json", "recipe.json", "index.json", "README.md"):
        assert (again.path / name).read_bytes() == (store.path / name).read_bytes(), name
    assert sorted(path.name for path in again.path.iterdir()) == [
        "README.md", "index.json", "recipe.json", "tokens.h5", "vocabulary.json"
    ]  # fmt: skip


def test_an_earlier_store_is_replaced_whole_and_kept_after_a_failure(tmp_path):
    first = made(tmp_path)
    (first.path / "stray").touch()
    with pytest.raises(InputError):
        made(tmp_path, {"a": ("train", ("?",))})
    assert (first.path / "stray").exists()
    assert made(tmp_path, {"a": ("train", ("a star",))}).num_captions == 1
    assert not (first.path / "stray").exists()
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["made.jsonl", "manifest", "tokens"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("vocabulary.json", "not the vocabulary"), ("recipe.json", "match its own hash"), ("tokens.h5", "another recipe")],
)
def test_files_of_another_store_are_noticed(tmp_path, name, said):
    store, other = made(tmp_path), made(tmp_path, {"a": ("train", ("one star",))}, out="other", language="blank_en")
    if name == "recipe.json":
        record = json.loads((store.path / name).read_text())
        record["recipe"]["min_count"] = 7
        (store.path / name).write_text(json.dumps(record))
    else:
        shutil.copy(other.path / name, store.path / name)
    with pytest.raises(InputError, match=said) as error:
        TokenStore(store.path)
    assert error.value.where.endswith(name)


def test_captions_are_checked_where_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("extract.stores.tokens._CHECKED", 2)
    folder = made(tmp_path).path
    with h5py.File(folder / "tokens.h5", "r+") as file:
        file["words"][file["word_offsets"][4]] = 10**6
    store = TokenStore(folder)
    assert [store.text(caption) for caption in range(4)] and store.image(4) == 3
    for read in (store.text, store.words):
        with pytest.raises(InputError, match=r"tokens\.h5: words are not all numbers of \d+"):
            read(4)
    with h5py.File(folder / "tokens.h5", "r+") as file:
        file["word_offsets"][5] = file["word_offsets"][4]
    with pytest.raises(InputError, match=r"tokens\.h5: caption 4 has no word"):
        TokenStore(folder)


def test_an_incomplete_store_names_what_it_lacks(tmp_path):
    store = made(tmp_path)
    (store.path / "vocabulary.json").unlink()
    with pytest.raises(InputError, match="lacks vocabulary.json"):
        TokenStore(store.path)


def test_the_cards_five_lines_run(store, capsys, monkeypatch):
    monkeypatch.chdir(store.path)
    with_h5py, with_store = (store.path / "README.md").read_text().split("```python\n")[1:]
    exec(with_h5py.split("```")[0], {})
    exec(with_store.split("```")[0], {})
    said = capsys.readouterr().out
    assert "one A striped ring, left of the blue star." in said
    assert "['a', 'striped', 'ring', 'left', 'of', 'the', 'blue', 'star'] [[0, 1], [2, 9], [10, 14]" in said
    assert "'ADJ', 'NOUN', 'NOUN', 'ADP'" in said


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_travels_to_other_processes(store, method):
    words = store.words(2).tolist()
    assert len(pickle.dumps(store)) < 5000
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(methodcaller("text", 2), (store,)) == CAPTIONS["twö.jpg"][1][0]
        assert pool.apply(methodcaller("words", 2), (store,)).tolist() == words


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real WordPiece tokenizer with a small vocabulary, saved as Hugging Face saves one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "a",
        "ring",
        "str",
        "##iped",
        "ca",
        "##fe",
        "star",
        ".",
        "'",
        "s",
        "t",
        "-",
    ]
    built = Tokenizer(models.WordPiece({entry: number for number, entry in enumerate(entries)}, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def test_pieces_know_their_words(tmp_path, tokenizer):
    captions = ("A Striped ring.", "😀 café 東京 star's", "cafe\u0301 ring")
    store = made(tmp_path, {"a": ("train", captions)}, tokenizer=tokenizer)
    ids, word = store.pieces(0)
    assert (ids.dtype, word.dtype) == (np.int32, np.int32)
    assert ids.tolist() == [2, 4, 6, 7, 5, 11, 3]  # [CLS] a str ##iped ring . [SEP]
    assert word.tolist() == [-1, 0, 1, 1, 2, -1, -1]
    assert store.word_texts(1) == ["😀", "café", "東京", "star", "'s"]
    ids, word = store.pieces(1)
    assert ids.tolist() == [2, 1, 8, 9, 1, 1, 10, 12, 13, 3]
    assert word.tolist() == [-1, 0, 1, 1, 2, 2, 3, 4, 4, -1]
    assert store.pieces(2).word.tolist() == [-1, 0, 0, 1, -1]
    assert store.recipe["tokenizer"]["pad_id"] == 0
    assert store.recipe["tokenizer"]["size"] == 16
    assert (store.recipe["tokenizer"]["start_id"], store.recipe["tokenizer"]["end_id"]) == (2, 3)


def test_pieces_are_cut_to_max_pieces(tmp_path, tokenizer):
    store = made(tmp_path, {"a": ("train", ("A striped ring", "star"))}, tokenizer=tokenizer, max_pieces=4)
    assert store.pieces(0).ids.tolist() == [2, 4, 6, 3]
    assert store.pieces(0).word.tolist() == [-1, 0, 1, -1]
    assert store.pieces(1).ids.tolist() == [2, 10, 3]
    assert len(store.words(0)) == 3
    with pytest.raises(InputError, match="special tokens"):
        made(tmp_path, tokenizer=tokenizer, max_pieces=2)


def test_another_tokenizer_is_another_recipe(tmp_path, tokenizer, store):
    assert store.pieces(0) is None
    first = made(tmp_path, tokenizer=tokenizer)
    moved = Path(shutil.copytree(tokenizer, tmp_path / "moved"))
    assert made(tmp_path, tokenizer=moved, out="moved_tokens").recipe_hash == first.recipe_hash
    file = moved / "tokenizer.json"
    file.write_text(file.read_text().replace('"star"', '"stag"'))
    assert made(tmp_path, tokenizer=moved, out="other_tokens").recipe_hash != first.recipe_hash


@pytest.mark.parametrize("make", [False, True])
def test_a_missing_tokenizer_says_how_to_get_it(tmp_path, make):
    folder = tmp_path / "bert base"
    if make:
        folder.mkdir()
    with pytest.raises(InputError, match="hf download .* --local-dir '.*/bert base'") as error:
        made(tmp_path, tokenizer=folder)
    assert str(folder) in error.value.where
    assert error.value.what == ("holds no tokenizer.json (or vocab.txt)" if make else "no such folder")


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", "{}"), ("tokenizer_config.json", '{"model_max_length": [1]}')]
)
def test_a_broken_tokenizer_is_an_error(tmp_path, tokenizer, name, content):
    folder = Path(shutil.copytree(tokenizer, tmp_path / "broken"))
    (folder / name).write_text(content)
    with pytest.raises(InputError, match="no tokenizer that loads"):
        made(tmp_path, tokenizer=folder)
