"""The ensemble stage: mean scores of runs from the files that their evaluation left, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.ensemble import run
from eval.ranks import ranks
from eval.recall import RECALLS, recalls
from eval.settings import EvaluationSettings
from manifests.errors import InputError
from tests.eval.run_files import write_run

IMAGE_OF = np.repeat(np.arange(8), 3)


def write(folder: Path, name: str, seed: int, *, ids: str = "abcdefgh", dims: int = 4) -> np.ndarray:
    """A run's files; gives its scores."""
    random = np.random.default_rng(seed)
    images, captions = random.normal(size=(8, dims)).astype("f4"), random.normal(size=(24, dims)).astype("f4")
    write_run(folder / name, images=images, captions=captions, image_of=IMAGE_OF, ids=list(ids))
    return images.astype(float) @ captions.astype(float).T


def test_mean_scores_are_ranked(tmp_path: Path):
    scores = (write(tmp_path, "one", 0) + write(tmp_path, "two", 1, dims=7)) / 2
    out = tmp_path / "ensembles" / "both"
    figures = run(name="both", runs=["one", "two"], runs_dir=tmp_path, settings=EvaluationSettings(folds=2), out=out)
    i2t, t2i = ranks(scores, np.arange(24).reshape(8, 3)), ranks(scores.T, IMAGE_OF)
    assert figures.items() >= recalls(i2t, t2i).items()
    assert figures["runs"] == ["one", "two"] and figures["folds"]["count"] == 2
    assert json.loads((out / "figures.json").read_text()) == figures
    assert json.loads((out / "metrics.json").read_text()) == {name: figures[name] for name in ("rsum", *RECALLS)}
    with np.load(out / "ranks.npz") as stored:
        assert np.array_equal(stored["i2t"], i2t) and np.array_equal(stored["t2i"], t2i)


def test_runs_on_other_images_and_missing_runs_are_refused(tmp_path: Path):
    write(tmp_path, "one", 0)
    write(tmp_path, "other", 1, ids="abcdefgx")
    settings = EvaluationSettings()
    with pytest.raises(InputError, match="runs one and other were evaluated on different images"):
        run(name="e", runs=["one", "other"], runs_dir=tmp_path, settings=settings, out=tmp_path / "e")
    with pytest.raises(InputError, match="ensemble e needs run none. Fix: dvc repro evaluate@none"):
        run(name="e", runs=["one", "none"], runs_dir=tmp_path, settings=settings, out=tmp_path / "e")
    broken = np.load(tmp_path / "one" / "evaluation" / "captions.npy")
    broken[5] = np.nan
    np.save(tmp_path / "one" / "evaluation" / "captions.npy", broken)
    write(tmp_path, "two", 1)
    with pytest.raises(InputError, match="run one, caption 5"):
        run(name="e", runs=["two", "one"], runs_dir=tmp_path, settings=settings, out=tmp_path / "e")
    assert not (tmp_path / "e").exists()
