"""Concepts of words and regions with a codebook whose entries are the scenes' attributes, and their figures."""

from pathlib import Path

import numpy as np
import pytest

from demo.scenes.describing import WORDS
from eval.encode import encode
from eval.matching.concepts import ConceptCollector, RegionConcepts, codebook_of
from eval.matching.correspondence import accuracy
from eval.matching.pairs import Pairs, match_pairs
from eval.matching.word_statistics import correspondence_figures, usage
from eval.report.inspection import table
from manifests.grounding import Grounding, read_grounding
from tests.eval.data_files import ATTRIBUTES, AttributeModel, draw_data_set, give_codebook, retrieval_data
from train.data import RetrievalData

MEANING = {word: value for words in WORDS.values() for word, value in words.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(folder: Path) -> RetrievalData:
    return retrieval_data(folder)


@pytest.fixture(scope="module")
def truth(folder: Path) -> dict[str, Grounding]:
    return read_grounding(folder / "manifest" / "grounding.jsonl")


@pytest.fixture(scope="module")
def model(folder: Path) -> AttributeModel:
    """Its concept of a word is the attribute that the word means; a region's is one that it has."""
    return give_codebook(AttributeModel(folder))


@pytest.fixture(scope="module")
def pairs(model: AttributeModel, data: RetrievalData, truth: dict[str, Grounding]) -> Pairs:
    return match_pairs(model, data, 16, truth)


def test_a_word_has_the_concept_that_it_means_and_a_region_one_of_its_attributes(
    pairs: Pairs, data: RetrievalData, truth: dict[str, Grounding]
):
    said = [(row, word.text.lower()) for row, word in enumerate(pairs.words)]
    # A word that isn't in the train split's captions has no meaning here, and no cosine with anything.
    means = [(row, MEANING[word]) for row, word in said if word in MEANING and pairs.matches.cosine[row] > 0]
    assert len(means) > 100
    assert all(ATTRIBUTES[pairs.matches.concept[row]] == meaning for row, meaning in means)
    for image, row in enumerate(data.images):
        for labels, concept in zip(truth[row.id].labels, pairs.concepts.of(image), strict=False):
            assert ATTRIBUTES[concept] in labels.values()


def test_the_figures_are_those_of_the_rows(pairs: Pairs, data: RetrievalData, truth: dict[str, Grounding]):
    figures = correspondence_figures(pairs)
    rows = [pairs.row(caption) for caption in range(data.num_captions)]
    words = [word for row in rows for word in row["words"]]
    assert len(words) == sum(own["words"] for own in figures["parts_of_speech"].values())
    for tag, own in figures["parts_of_speech"].items():
        mine = [word for word in words if word["pos"] == tag]
        assert own["words"] == len(mine) and own["different"] == len({word["word"].lower() for word in mine})
        assert own["agreement"] == pytest.approx(
            np.mean([word["concept"] == word["region_concept"] for word in mine]), abs=1e-4
        )
        if known := [word["right"] for word in mine if "right" in word]:
            assert own["accuracy"] == pytest.approx(np.mean(known), abs=1e-4) and own["known"] == len(known)
    nouns = figures["parts_of_speech"]["NOUN"]
    assert nouns["accuracy"] > nouns["chance"] and figures["parts_of_speech"]["DET"].get("accuracy") is None
    usage = figures["concepts"]
    assert usage["size"] == len(ATTRIBUTES)
    assert usage["words"]["in_use"] == len({word["concept"] for word in words})
    for entry in usage["entries"]:
        meaning = ATTRIBUTES[entry["concept"]]
        # The first entry is also that of words that mean nothing.
        if entry["concept"] and entry["words"]:
            assert all(MEANING[word] == meaning for word, _ in entry["most_words"])
            assert entry["words"] == sum(word["concept"] == entry["concept"] for word in words)
    assert sum(entry["regions"] for entry in usage["entries"]) == len(pairs.concepts.concept)
    assert accuracy(pairs.matches, data, truth)["words"] == sum("right" in word for word in words)


def test_usage_of_equal_and_of_one_entry():
    assert usage(np.array([3, 3, 5, 5, 7, 7, 9, 9])) == {"in_use": 4, "entropy": 2.0, "effective": 4.0}
    assert usage(np.array([3, 3])) == {"in_use": 1, "entropy": 0.0, "effective": 1.0}


def test_the_concepts_of_some_images_are_the_same_and_survive_their_file(
    model: AttributeModel, data: RetrievalData, pairs: Pairs, tmp_path: Path
):
    found = ConceptCollector(data, codebook_of(model))
    encode(model, data, 1, [found], captions=[*data.captions_of(2), *data.captions_of(5)])
    found.concepts().save(tmp_path / "concepts.npz")
    found = RegionConcepts.read(tmp_path / "concepts.npz", fix="")
    assert found.size == len(ATTRIBUTES)
    for image in (2, 5):
        assert np.array_equal(found.of(image), pairs.concepts.of(image))
    assert len(found.of(3)) == 0


def test_without_a_codebook_nothing_is_said_of_concepts(folder: Path, data: RetrievalData, truth: dict[str, Grounding]):
    pairs = match_pairs(AttributeModel(folder), data, 16, truth)
    assert pairs.concepts is None and (pairs.matches.concept == -1).all()
    figures = correspondence_figures(pairs)
    assert "concepts" not in figures and "agreement" not in figures["parts_of_speech"]["NOUN"]
    assert "concept" not in table(pairs.row(0)) and "concept" not in pairs.row(0)["words"][0]


def test_the_table_has_the_best_match_first_and_the_truth(pairs: Pairs):
    row = pairs.row(0)
    cosines = [word["cosine"] for word in row["words"]]
    assert cosines == sorted(cosines, reverse=True)
    lines = table(row).splitlines()
    assert lines[0] == f"{row['image']}, caption 1: {row['text']}"
    assert len(lines) == 2 + len(row["words"]) and "right?" in lines[1]
    assert sum(line.endswith(("right", "wrong", "fitting")) for line in lines[2:]) == sum(
        "right" in word for word in row["words"]
    )
