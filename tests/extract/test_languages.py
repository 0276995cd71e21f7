"""Captions of other languages: bare pipelines, scripts without spaces, and what is noticed of a wrong choice."""

from pathlib import Path

import pytest

from extract.stores.tokens import TokenStore
from extract.text.words import load_language, split_words
from manifests.errors import InputError
from tests.extract.test_tokens import made

CHINESE = ["一只棕色的狗在草地上跑。", "两个孩子在海边玩沙子。", "一个男人骑着红色的自行车。"]
JAPANESE = ["茶色い犬が芝生の上を走っている。", "海辺で二人の子供が遊んでいる。", "男の人が赤い自転車に乗っている。"]
GERMAN = ["Ein brauner Hund läuft über die Wiese.", "Zwei Kinder spielen am Strand.", "Ein Mann fährt Fahrrad."]
THAI = ["สุนัขสีน้ำตาลวิ่งบนหญ้า", "เด็กสองคนเล่นทราย", "ชายคนหนึ่งขี่จักรยาน"]


def store(folder: Path, language: str, texts: list[str], **settings: object) -> TokenStore:
    captions = {f"{number}": ("train", (text,)) for number, text in enumerate(texts)}
    return made(folder, captions, language=language, **settings)


@pytest.mark.parametrize(
    ("language", "texts", "words"),
    [
        ("blank:zh", CHINESE, ["一", "只", "棕", "色", "的", "狗", "在", "草", "地", "上", "跑"]),
        ("characters", CHINESE, ["一", "只", "棕", "色", "的", "狗", "在", "草", "地", "上", "跑"]),
        ("characters", JAPANESE, [*"茶色い犬が芝生の上を走っている"]),
        ("characters", THAI[1:2], ["เ", "ด็", "ก", "ส", "อ", "ง", "ค", "น", "เ", "ล่", "น", "ท", "ร", "า", "ย"]),
        ("blank:de", GERMAN, ["ein", "brauner", "hund", "läuft", "über", "die", "wiese"]),
        ("characters", ["A dog's ball, 3 狗 a b!"], ["a", "dog's", "ball", "3", "狗", "a", "b"]),
    ],
)
def test_words_of_other_languages(tmp_path: Path, language: str, texts: list[str], words: list[str]) -> None:
    found = store(tmp_path, language, texts)
    assert found.word_texts(0) == words
    text, spans = found.text(0), found.spans(0)
    assert [text[start:end].lower() for start, end in spans] == words
    assert found.recipe["language"] == {"name": language}


@pytest.mark.parametrize("texts", [CHINESE, JAPANESE, THAI])
@pytest.mark.parametrize("language", ["blank_en", "blank:de"])
def test_text_without_spaces_is_not_left_whole(tmp_path: Path, language: str, texts: list[str]) -> None:
    with pytest.raises(InputError, match=rf"language: {language}: it takes .*without spaces.*set `tokens.language` to"):
        store(tmp_path, language, texts)
    assert not (tmp_path / "tokens").exists()


def test_some_words_of_another_script_are_no_reason(tmp_path: Path) -> None:
    store(
        tmp_path,
        "blank_en",
        ["A sign says 東京都庁舎前駅入口.", *["A dog runs.", "Two dogs.", "A cat.", "Birds fly."] * 2],
    )


def test_unknown_words_and_captions_of_one_word_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, "blank_en", ["dog", "dog", "dog", "dog", "Aquamarine zeppelins hover."], min_count=4)
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "43% of the train split's words are unknown" in text and "80% of the captions are one word" in text


def test_a_language_that_wants_a_package_says_which(tmp_path: Path) -> None:
    try:
        nlp, _ = load_language("blank:ja")
    except InputError as error:
        assert "SudachiPy" in str(error) and "set language to characters" in error.fix
    else:  # it is installed here
        (words,) = split_words(nlp, JAPANESE[:1], 50)
        assert "犬" in words.words
