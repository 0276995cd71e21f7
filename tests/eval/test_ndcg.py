"""NDCG: parity with the published figures, and ROUGE-L and SPICE as relevance."""

import sys
from pathlib import Path

import numpy as np
import pytest

from eval.evaluated import nearest_siblings
from eval.metrics.spice import reason_to_skip, spice_relevance
from eval.metrics.unimodal import caption_recalls
from eval.ndcg import likeness_ndcg, ndcg_at, relevance_ndcg
from eval.rouge import RougeL, common_subsequence
from manifests.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "distillation.npz"
CAPTIONS = [
    "A man rides a red horse.",
    "A man is riding a horse",
    "the the the the",
    "!!!",
    "Two dogs, one cat; 3 birds!",
    "a cat and two dogs watch three birds",
    " ".join(f"word{number % 50} a" for number in range(70)),  # 140 words
    " ".join(f"a word{number % 40}" for number in range(40)),  # 80 words
    " ".join(f"word{number}" for number in range(64)),  # as many as bits
]


def test_golden_ndcg():
    with np.load(GOLDEN) as golden:
        for case in "ab":
            found = ndcg_at(golden[f"ndcg_{case}_relevance"], golden[f"ndcg_{case}_ranking"])
            assert found == pytest.approx(float(golden[f"ndcg_{case}_at25"]), abs=1e-12)


def test_ndcg_of_the_best_order_of_nothing_and_of_few_candidates():
    relevance = np.array([0.1, 0.9, 0.0, 0.5])
    assert ndcg_at(relevance, np.argsort(-relevance)) == pytest.approx(1)
    assert ndcg_at(relevance, np.array([1])) == pytest.approx(1)
    assert ndcg_at(relevance, np.array([2, 0])) < 0.2
    assert ndcg_at(np.zeros(4), np.array([0, 1])) == 0
    assert ndcg_at(np.array([0.3]), np.array([0])) == pytest.approx(1)


def random_captions(count: int) -> list[str]:
    random = np.random.default_rng(0)
    words = ["a", "the", "red", "dog", "dogs", "on", "grass", "RUNS", "2"]
    return [" ".join(random.choice(words, random.integers(1, 14))) for _ in range(count)]


def plain_rouge(caption: str, others: list[str]) -> float:
    """The definition: the largest precision and the largest recall, β 1.2."""
    words, precision, recall = caption.lower().split(), 0.0, 0.0
    for other in others:
        theirs = other.lower().split()
        table = np.zeros((len(words) + 1, len(theirs) + 1), int)
        for i, j in np.ndindex(len(words), len(theirs)):
            longer = table[i, j] + 1 if words[i] == theirs[j] else max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = longer
        common = table[-1, -1]
        precision, recall = max(precision, common / max(len(words), 1)), max(recall, common / max(len(theirs), 1))
    below = recall + 1.44 * precision
    return 2.44 * precision * recall / below if below else 0.0


def test_rouge_l_follows_the_definition():
    captions = [*CAPTIONS, *random_captions(20), ""]
    rouge, image_of = RougeL(captions), np.repeat(np.arange(10), 3)
    for caption, text in enumerate(captions):
        assert np.allclose(rouge.with_all(caption), [plain_rouge(text, [other]) for other in captions], atol=1e-12), (
            text
        )
        expected = [plain_rouge(text, captions[3 * image : 3 * image + 3]) for image in range(10)]
        assert np.allclose(rouge.with_images(caption, image_of), expected, atol=1e-12)


def test_common_subsequence():
    assert common_subsequence("abcbdab", "bdcaba") == 4
    assert common_subsequence("", "abc") == common_subsequence("abc", "") == 0


def slow_ndcg(captions: list[str], image_of: np.ndarray, num_images: int, rankings: dict) -> dict[str, float]:
    """NDCG by its definition, from the whole similarity matrices."""
    own = [np.flatnonzero(image_of == image) for image in range(num_images)]
    likeness = np.array([[plain_rouge(caption, [other]) for other in captions] for caption in captions])
    to_image = np.array([[plain_rouge(caption, [captions[c] for c in group]) for group in own] for caption in captions])
    between = np.array([to_image[group].max(0) if len(group) else np.zeros(num_images) for group in own])
    other = likeness.copy()
    np.fill_diagonal(other, 0)
    np.fill_diagonal(between, 0)
    asked = [image for image in range(num_images) if len(own[image])]
    values = {
        "i2t": [ndcg_at(to_image[:, image], rankings["i2t"][image]) for image in asked],
        "t2i": [ndcg_at(row, ranking) for row, ranking in zip(to_image, rankings["t2i"], strict=True)],
        "i2i": [ndcg_at(between[image], rankings["i2i"][image]) for image in asked],
        "t2t": [ndcg_at(row, ranking) for row, ranking in zip(other, rankings["t2t"], strict=True)],
    }
    return {direction: 100 * np.mean(found) for direction, found in values.items()}


def test_graded_rankings_follow_the_definition():
    random = np.random.default_rng(1)
    image_of = np.repeat([0, 1, 2, 4, 5], [2, 1, 5, 7, 1])  # image 3 and the last have no caption
    captions = random_captions(16)
    shapes = {"i2t": (7, 16), "t2i": (16, 7), "i2i": (7, 7), "t2t": (16, 16)}
    rankings = {
        direction: np.stack([random.permutation(candidates)[:4] for _ in range(queries)])
        for direction, (queries, candidates) in shapes.items()
    }
    found = likeness_ndcg(RougeL(captions), image_of, 7, rankings)
    assert found == {
        key: pytest.approx(value, abs=1e-3) for key, value in slow_ndcg(captions, image_of, 7, rankings).items()
    }
    groups = [[captions[c] for c in np.flatnonzero(image_of == i)] for i in range(7)]
    to_image = np.array([[plain_rouge(caption, group) for group in groups] for caption in captions])
    graded = relevance_ndcg(to_image, rankings["i2t"], rankings["t2i"])
    assert graded == pytest.approx({key: found[key] for key in ("i2t", "t2i")}, abs=1e-3)


def test_captions_find_their_siblings():
    image_of = np.repeat(np.arange(4), [3, 1, 2, 2])
    captions = np.eye(4)[image_of] + 0.01 * np.random.default_rng(2).normal(size=(8, 4))
    found = caption_recalls(captions, image_of)
    assert found["t2t_r1"] == 100 and found["t2t_mean_rank"] == 1  # the lone caption asks nothing
    captions[:3] = captions[[3, 3, 3]]  # the first image's captions are now its neighbour's, who ranks by its index
    assert caption_recalls(captions, image_of)["t2t_r1"] == 100
    assert caption_recalls(captions[3:4], image_of[3:4]) is None
    assert nearest_siblings(captions[:1], 5) is None
    assert nearest_siblings(captions[:3], 5).tolist() == [[1, 2], [0, 2], [0, 1]]


def test_spice_is_left_out_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason_to_skip(tmp_path / "spice-1.0.jar") == "there is no java on the PATH"
    stand_in(tmp_path, "")
    assert reason_to_skip(tmp_path / "spice-1.0.jar") == f"there is no file {tmp_path / 'spice-1.0.jar'}"
    (tmp_path / "spice-1.0.jar").touch()
    assert reason_to_skip(tmp_path / "spice-1.0.jar") is None


def stand_in(folder: Path, body: str) -> None:
    """A `java` that only speaks SPICE's file format: the real program and its models can't be fetched by a test."""
    java = folder / "java"
    java.write_text(f"#!{sys.executable}\nimport json, sys\n{body}")
    java.chmod(0o755)


def test_what_is_asked_of_spice_and_what_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    body = """
given = json.load(open(sys.argv[4]))
share = lambda row: len(set(row["test"].split()) & set(" ".join(row["refs"]).split())) / 10
answers = [{"image_id": row["image_id"], "scores": {"All": {"f": share(row)}}} for row in reversed(given)]
json.dump(answers, open(sys.argv[sys.argv.index("-out") + 1], "w"))
"""
    stand_in(tmp_path, body)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("eval.metrics.spice.PAIRS_A_CALL", 2)
    captions = ["a red dog", "a dog", "two cats"]
    found = spice_relevance(captions, [[0, 1], [], [2]], tmp_path / "spice-1.0.jar")
    assert np.allclose(found, [[0.3, 0, 0], [0.2, 0, 0], [0, 0, 0.2]])
    stand_in(tmp_path, "sys.exit('out of memory')")
    with pytest.raises(InputError, match=r"spice-1.0.jar: SPICE ended with code 1: out of memory"):
        spice_relevance(captions, [[0, 1], [], [2]], tmp_path / "spice-1.0.jar")
