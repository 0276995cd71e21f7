"""The report's sentences to take away: they follow from the figures, whichever way those came out."""

from pathlib import Path

import numpy as np
import pytest

from eval.report import takeaways
from eval.report.recall_table import metric_rows
from eval.report.results import RunResult
from manifests.files import write_json
from tests.eval.run_files import write_run


def run(folder: Path, name: str, noise: float, **options) -> RunResult:
    """A run on 20 images whose captions lie around them, the further the larger `noise`."""
    images = np.random.default_rng(0).normal(size=(20, 6))
    image_of = np.repeat(np.arange(20), 2)
    captions = images[image_of] + noise * np.random.default_rng(1).normal(size=(40, 6))
    ids = [str(number) for number in range(20)]
    return write_run(folder / name, images=images, captions=captions, image_of=image_of, ids=ids, **options)


def test_captions_that_are_found_sooner_are_counted(tmp_path: Path):
    runs = [run(tmp_path, "a", 1.5), run(tmp_path, "b", 0.5)]
    before, after = (each.ranks["t2i"] for each in runs)
    sooner, later = (after < before).sum(), (after > before).sum()
    assert f"{sooner} find their image sooner with `b` than with `a`, {later} later" in takeaways.pictures(runs)
    middle = np.sort(before)[19] + 1
    assert takeaways.pictures(runs[:1]) == f"Half of the captions have their image among the first {middle} of 20."


@pytest.mark.parametrize(
    ("agreement", "chance", "begins"),
    [
        (0.046, 0.009, "Mostly chance"),
        (0.3, 0.05, "Partly meaningful"),
        (0.62, 0.05, "Meaningful"),
        (0.9, 0.85, "Mostly"),
    ],
)
def test_concepts_are_said_to_mean_something_or_not(agreement: float, chance: float, begins: str):
    text = takeaways.concepts([{"name": "r", "usage": {"agreement": agreement, "agreement_chance": chance}}])
    assert text.startswith(begins) and f"in {agreement:.1%} of all words, {chance:.1%} by chance" in text


def test_a_study_says_whether_the_best_row_stands_clear():
    first, second = {"row": "16", "rsum": 30, "low": 25, "high": 35}, {"row": "64", "rsum": 40, "low": 36, "high": 44}
    assert takeaways.study("Size", [first, second]) == "64 has the highest R@sum, 40.0, clear of 16 (30.0)."
    assert "overlaps that of 16" in takeaways.study("Size", [first, second | {"low": 34}])
    assert takeaways.study("Size", [first]).startswith("One row alone")


def test_a_run_that_was_still_rising_is_named(tmp_path: Path):
    rising, done = run(tmp_path, "rising", 1), run(tmp_path, "done", 1)
    for each, best in ((rising, 1), (done, 0)):
        write_json(each.folder / "model" / "run.json", {"parameters": 1, "best_epoch": best})
    text = takeaways.training([rising, done])
    assert text.startswith("Best epoch on the validation split: `rising` 2 of 2, `done` 1 of 2; more epochs may help")
    assert text.endswith("help `rising`.")


def test_words_without_truth_are_not_called_right(tmp_path: Path):
    assert "no true objects" in takeaways.words([run(tmp_path, "a", 1)])


def test_metrics_are_named_as_the_field_names_them(tmp_path: Path):
    one = run(tmp_path, "a", 1)
    figures = dict(one.metrics) | {
        "ndcg": {"rouge_l": {"i2t": 58.0, "t2i": 66.0}, "spice": {"left_out": "no Java"}},
        "unimodal": {"t2t_r10": 3.0, "t2t_r5": 2.0, "i2i_ndcg": 1.0},
        "eccv": {"i2t_map_at_r": 5.0},
    }
    write_json(one.folder / "evaluation" / "figures.json", figures)
    rows = metric_rows([RunResult("a", {}, one.folder)])
    assert [(row["name"], row["values"][0]) for row in rows] == [
        ("NDCG@25 by ROUGE-L: captions for an image", 58.0),
        ("NDCG@25 by ROUGE-L: images for a caption", 66.0),
        ("Uni-modal: images for an image, NDCG@25", 1.0),
        ("Uni-modal: captions for a caption, R@5", 2.0),
        ("Uni-modal: captions for a caption, R@10", 3.0),
        ("ECCV Caption: captions for an image, mAP@R", 5.0),
    ]
