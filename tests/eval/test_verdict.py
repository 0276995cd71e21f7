"""The sentences of the report say what came out: a gain, a loss, no difference, too few images, no alignment."""

from pathlib import Path

import numpy as np
import pytest

from eval.report.examples import choose
from eval.report.page import compared
from eval.report.results import RunResult
from eval.report.verdict import signed, verdict
from manifests.errors import InputError
from tests.eval.run_files import write_run


def make(folder: Path, name: str, noise: float, *, count: int = 150, seed: int = 7, **options) -> RunResult:
    """A run whose captions lie around their images, the further the larger `noise`."""
    images = np.random.default_rng(0).normal(size=(count, 12))
    random = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(count), 2)
    captions = images[image_of] + noise * random.normal(size=(2 * count, 12))
    ids = [f"i{index}" for index in range(count)]
    return write_run(folder / name, images=images, captions=captions, image_of=image_of, ids=ids, **options)


def test_a_gain_over_triplets_alone_is_reported_with_its_caveats(tmp_path: Path):
    runs = [make(tmp_path, "base", 1.6), make(tmp_path, "more", 0.8, losses=("triplet", "cra"))]
    text = " ".join(verdict(runs))
    gain = runs[1].metrics["rsum"] - runs[0].metrics["rsum"]
    assert f"`more` reaches R@sum {runs[1].metrics['rsum']:.1f}, {gain:.1f} more than `base`" in text
    assert "not yet evidence of fine-grained" in text
    assert "one seed" in text


def test_a_loss_is_called_a_loss(tmp_path: Path):
    runs = [make(tmp_path, "base", 0.8), make(tmp_path, "worse", 1.6, losses=("triplet", "cra"))]
    text = " ".join(verdict(runs))
    assert "less than `base`" in text and "here it loses" in text
    assert "not yet evidence" not in text


def test_a_small_difference_is_called_none(tmp_path: Path):
    runs = [make(tmp_path, "base", 1.2), make(tmp_path, "same", 1.21)]
    assert "no difference that these test images can show" in verdict(runs)[0]


def test_runs_are_compared_in_the_order_of_validation_and_comparisons_are_counted(tmp_path: Path):
    better = make(tmp_path, "better on test", 0.8, val_rsum=150.0)
    chosen = make(tmp_path, "chosen", 0.9, seed=8, val_rsum=160.0)
    runs = [make(tmp_path, "base", 1.6), better, chosen]
    assert better.metrics["rsum"] > chosen.metrics["rsum"]
    sentences = verdict(runs)
    assert sentences[0].startswith("`chosen` reaches ") and compared(runs) == [runs[0], chosen]
    assert sentences[1].startswith("Against `better on test`, the next best, `chosen` has ")
    assert any("These are 3 comparisons" in sentence and "up to 15%" in sentence for sentence in sentences)
    assert not any("next best" in sentence or "comparisons" in sentence for sentence in verdict(runs[:2]))


def test_the_validations_choice_that_loses_on_test_is_said_to_lose(tmp_path: Path):
    chosen = make(tmp_path, "chosen", 1.5, val_rsum=160.0)
    sentences = verdict(
        [make(tmp_path, "base", 1.6), make(tmp_path, "far better", 0.5, seed=8, val_rsum=150.0), chosen]
    )
    assert sentences[1].startswith("Against `far better`, ") and sentences[1].endswith(": here it loses.")


def test_the_kept_epoch_is_the_records_and_the_best_one_where_there_is_none(tmp_path: Path):
    run = make(tmp_path, "distilled", 1.0, val_rsum=80.0)  # its curve has 90 once
    assert run.val_rsum == 80.0
    (tmp_path / "distilled" / "model" / "run.json").unlink()
    assert RunResult(run.name, {}, run.folder).val_rsum == 90.0


def test_few_images_show_nothing(tmp_path: Path):
    assert any("With 5 test images" in sentence for sentence in verdict([make(tmp_path, "tiny", 1, count=5)]))


def test_one_run_has_nothing_to_be_compared_with(tmp_path: Path):
    sentences = verdict([make(tmp_path, "alone", 1)])
    assert "only run" in sentences[0] and not any("seed" in sentence for sentence in sentences)


def test_words_near_chance_are_called_so(tmp_path: Path):
    near = {"accuracy": 0.31, "chance": 0.3, "ceiling": 1.0, "words": 10, "kinds": {}}
    far = near | {"accuracy": 0.9}
    runs = [make(tmp_path, "base", 1, correspondence=near), make(tmp_path, "good", 1, correspondence=far)]
    text = " ".join(verdict(runs))
    assert "31% with `base`, 90% with `good`" in text
    assert "`base` has not learnt which region a word means" in text


def test_the_kinds_of_words_that_carry_a_share_are_named(tmp_path: Path):
    def correspondence(**kinds: float) -> dict:
        shares = {kind: {"accuracy": share, "chance": 0.17, "words": 100} for kind, share in kinds.items()}
        return {"accuracy": 0.24, "chance": 0.17, "ceiling": 1.0, "words": 300, "kinds": shares}

    runs = [
        make(tmp_path, "none", 1, correspondence=correspondence(colour=0.2, shape=0.17, size=0.18)),
        make(tmp_path, "some", 1, correspondence=correspondence(colour=0.3, shape=0.17, size=0.18)),
        make(tmp_path, "most", 1, correspondence=correspondence(colour=0.3, shape=0.17, size=0.18)),
        make(tmp_path, "all", 1, correspondence=correspondence(colour=0.9, shape=0.9, size=0.9)),
    ]
    sentences = " ".join(verdict(runs))
    assert "`none` has not learnt which region a word means." in sentences
    assert "With `some` and `most`, colour words are clearly above chance" in sentences
    assert "shape and size words are not." in sentences
    assert "With `all`, every kind of word is clearly above chance." in sentences


@pytest.mark.parametrize(("value", "text"), [(1.25, "+1.2"), (-3.0, "−3.0"), (0.04, "0.0"), (-0.01, "0.0")])
def test_signed(value: float, text: str):
    assert signed(value) == text


def test_examples_are_the_extremes_and_show_no_image_twice(tmp_path: Path):
    runs = [make(tmp_path, "base", 1.6), make(tmp_path, "more", 1.2, seed=8)]
    chosen = choose(runs, 6)
    assert [example.kind for example in chosen] == ["better"] * 2 + ["worse"] * 2 + ["same"] * 2
    before, after = (run.ranks["t2i"] for run in runs)
    gain = np.log1p(before) - np.log1p(after)
    assert gain[chosen[0].caption] == gain.max()
    assert gain[chosen[2].caption] == gain.min()
    images = [int(runs[0].ranks["caption_image"][example.caption]) for example in chosen]
    assert len(set(images)) == 6
    assert choose(runs, 6) == chosen


def test_examples_of_a_split_that_is_smaller_than_asked_for(tmp_path: Path):
    runs = [make(tmp_path, "a", 1, count=3), make(tmp_path, "b", 1, count=3)]
    assert len(choose(runs, 6)) == 3
    assert len(choose(runs[:1], 6)) == 3
    assert choose(runs, 0) == choose(runs[:1], 0) == []


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path: Path):
    run = make(tmp_path, "base", 1, count=3)
    (tmp_path / "base" / "evaluation" / "figures.json").unlink()
    with pytest.raises(InputError, match="dvc repro evaluate@base"):
        run.metrics["rsum"]
