"""A query is cut into words as the captions of the run's data set were, in whatever language they are."""

from pathlib import Path

import pytest

from eval.search.words import CaptionReader, RunWords
from extract.stages import tokens
from extract.stores.tokens import TokenStore
from extract.text.settings import TokenSettings
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest


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
    rows = [CaptionedImage("1000", "a.jpg", "0" * 64, 9, 9, "train", (caption,))]
    write_manifest(tmp_path / "manifest", rows)
    settings = TokenSettings(language=language, min_count=1)
    tokens.run(manifest=tmp_path / "manifest", settings=settings, out=tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens")
    words = RunWords(settings, False, None, tmp_path / "tokens" / "vocabulary.json", {"tokens": store.recipe})
    read = CaptionReader(words).read([query])
    assert [word.text for word in read.unknown[0]] == unknown
    assert [query[word.start : word.end].lower() for word in read.words[0]] == [word.text for word in read.words[0]]
    assert {store.vocabulary[number] for number in read.batch.words[0].tolist()} == {*known, "<unk>"}
