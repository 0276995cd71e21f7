"""A query is cut into words as the captions of the run's data set were, in whatever language they are."""

from pathlib import Path

import pytest

from eval.search.words import RunWords, captioned, unknown_words
from extract.stages import tokens
from extract.stores.tokens import TokenStore
from extract.text.settings import TokenSettings
from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from tests.extract.exchange_files import write_data_set


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
    data = write_data_set(tmp_path / "data")
    rows = [CaptionedImage("1000", "a.jpg", "0" * 64, 9, 9, "train", (caption,))]
    write_manifest(tmp_path / "manifest", rows)
    settings = TokenSettings(language=language, min_count=1)
    tokens.run(manifest=tmp_path / "manifest", settings=settings, out=tmp_path / "tokens")
    store = TokenStore(tmp_path / "tokens")
    words = RunWords(settings, False, None, tmp_path / "tokens" / "vocabulary.json", {"tokens": store.recipe})
    asked = [CaptionedImage("1000", "a.jpg", "0" * 64, 9, 9, "train", (query,))]
    with captioned(asked, words, data.store) as made:
        assert unknown_words(made) == unknown
        found = {made.token_store.vocabulary[number] for number in made.token_store.words(0).tolist()}
    assert found == {*known, "<unk>"}
