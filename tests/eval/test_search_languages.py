"""A query is cut into words as the captions of the run's data set were, in whatever language they are."""

from pathlib import Path

import numpy as np
import pytest

from eval.matching.correspondence import Matches
from eval.search.answer import WordMatches
from eval.search.words import CaptionReader, RunWords
from extract.stages import tokens
from extract.stores.tokens import TokenStore
from extract.text.settings import TokenSettings
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest


def reader(folder: Path, language: str, caption: str) -> tuple[CaptionReader, TokenStore]:
    """Reads as a run does that was trained with one caption, and that caption's store."""
    rows = [CaptionedImage("1000", "a.jpg", "0" * 64, 9, 9, "train", (caption,))]
    write_manifest(folder / "manifest", rows)
    settings = TokenSettings(language=language, min_count=1)
    tokens.run(manifest=folder / "manifest", settings=settings, out=folder / "tokens")
    store = TokenStore(folder / "tokens")
    words = RunWords(settings, False, None, folder / "tokens" / "vocabulary.json", {"tokens": store.recipe})
    return CaptionReader(words), store


@pytest.mark.parametrize(
    ("language", "caption", "query", "known", "unknown"),
    [
        ("blank:zh", "一只狗在草地上跑", "草地上的狗", ["草", "地", "上", "狗"], ["的"]),
        ("characters", "犬が芝生の上を走る", "芝生の猫", ["芝", "生", "の"], ["猫"]),
        ("blank:de", "Ein Hund läuft über die Wiese.", "Hund über Straße", ["hund", "über"], ["straße"]),
    ],
)
def test_a_query_in_the_captions_language(
    tmp_path: Path, language: str, caption: str, query: str, known: list[str], unknown: list[str]
) -> None:
    reads, store = reader(tmp_path, language, caption)
    read = reads.read([query])
    assert [word.text for word in read.unknown[0]] == unknown
    assert [query[word.start : word.end].lower() for word in read.words[0]] == [word.text for word in read.words[0]]
    assert {store.vocabulary[number] for number in read.batch.words[0].tolist()} == {*known, "<unk>"}


@pytest.mark.parametrize(
    ("language", "text", "drawn"),
    [
        ("blank_en", "A red cat with a dog that sits over the bus, $5", ["red", "cat", "dog", "sits", "bus", "5"]),
        ("blank:de", "Ein Hund, der über die Wiese läuft", ["hund", "wiese", "läuft"]),
        ("blank:zh", "草地上的狗", ["草", "狗"]),
        ("characters", "a cat that sits 猫", ["that", "sits"]),
    ],
)
def test_without_parts_of_speech_a_word_is_drawn_that_is_no_stop_word(
    tmp_path: Path, language: str, text: str, drawn: list[str]
) -> None:
    read = reader(tmp_path, language, text)[0].read([text])
    none = Matches(*[np.empty(0)] * 6)
    assert [word.text for word in WordMatches(read, [], [0], [0], none, False).highlights(0)] == drawn
