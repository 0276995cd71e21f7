"""`selfalign remove`: a data set's entries, stores, runs and stages go, once the list of them is agreed to."""

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from manifests.locks import sole_writer
from pipeline.cli import main
from pipeline.editing import insert
from tests.pipeline.project import CHECKOUT

TEXT = (CHECKOUT / "params.yaml").read_text(encoding="utf-8")
STAGES = ("manifest@mine", "regions@mine", "train@mine-run", "evaluate@mine-run", "manifest@mine2", "train@vsrn")
FILES = (
    "data/mine/manifest/images.arrow",
    "data/mine/regions/000000.h5",
    "data/mine/.regions.made.json",
    "data/mine/made.jsonl",
    "data/mine2/regions/000000.h5",
    "runs/mine-run/model/weights.safetensors",
    "runs/mine-run/metrics.json",
    "runs/vsrn/model/weights.safetensors",
    "ensembles/mine-both/metrics.json",
    "pictures/a.jpg",
    "pictures/captions.csv",
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed parameters with a data set `mine`, two runs on it and their ensemble, and files of all of them."""
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load(TEXT)
    source = {"format": "folder", "images": "pictures", "captions": "pictures/captions.csv", "watch": "pictures"}
    mine, run = params["datasets"]["demo"] | {"source": source}, params["runs"]["vsrn"] | {"dataset": "mine"}
    text = insert(TEXT, "datasets", {"mine": mine})
    text = insert(text, "runs", {"mine-run": run, "mine-other": run})
    text = insert(text, "ensembles", {"mine-both": ["mine-run", "mine-other"]})
    Path("params.yaml").write_text(text, encoding="utf-8")
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    lock = {"schema": "2.0", "stages": {stage: {"cmd": f"selfalign {stage}"} for stage in STAGES}}
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    shutil.copy(CHECKOUT / "dvc.yaml", tmp_path)
    return tmp_path


def remove(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, ["remove", *arguments], input=answer, catch_exceptions=False)


def files() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file()}


def test_all_of_a_data_set_goes_and_nothing_else(project: Path) -> None:
    before = files()
    done = remove("mine", "--yes")
    assert done.exit_code == 0, done.output
    assert before - files() == {
        name for name in FILES if name.startswith(("data/mine/", "runs/mine", "ensembles/mine"))
    }
    assert Path("params.yaml").read_text(encoding="utf-8") == TEXT
    stages = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert list(stages) == ["manifest@mine2", "train@vsrn"]
    for line in (
        "params.yaml: datasets.mine",
        "runs.mine-other",
        "ensembles.mine-both",
        "runs/mine-run",
        "regions@mine",
    ):
        assert line in done.output
    assert "pictures" not in done.output and "mine2" not in done.output


def test_nothing_goes_unless_it_is_agreed_to(project: Path) -> None:
    before, text = files(), Path("params.yaml").read_bytes()
    refusal, silence = remove("mine", answer="n\n"), remove("mine")
    assert "runs/mine-run" in refusal.output and "nothing was removed" in refusal.output
    assert silence.exit_code == 1
    assert files() == before and Path("params.yaml").read_bytes() == text
    assert remove("mine", answer="y\n").output.endswith("mine is removed\n")


def test_pictures_and_files_that_others_read_stay(project: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8").replace("pictures", "data/mine/pack/pictures")
    vocabulary = "      language: scenes\n      vocabulary: data/mine/tokens/vocabulary.json\n"
    Path("params.yaml").write_text(text.replace("      language: scenes\n", vocabulary, 1), encoding="utf-8")
    for name in ("data/mine/pack/pictures/a.jpg", "data/mine/tokens/vocabulary.json"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    done = remove("mine", "--yes")
    assert "data/mine/pack stays" in done.output and "data/mine/tokens stays" in done.output
    assert {name for name in files() if name.startswith("data/mine/") and "made" not in name} == {
        "data/mine/pack/pictures/a.jpg",
        "data/mine/tokens/vocabulary.json",
    }


def test_references_written_by_hand_are_named_with_their_lines(project: Path) -> None:
    done = remove("demo", answer="n\n")
    note = next(line for line in done.output.splitlines() if "by hand" in line)
    lines = Path("dvc.yaml").read_text(encoding="utf-8").splitlines()
    assert any(f" {number}" in note for number, line in enumerate(lines, 1) if "path: data/demo/regions" in line)


@pytest.mark.parametrize("wrong", ["nobody", "min"])
def test_no_such_data_set(project: Path, wrong: str) -> None:
    done = remove(wrong, "--yes")
    assert done.exit_code == 1 and f"datasets has no '{wrong}'" in done.output


def test_the_only_data_set_stays(project: Path) -> None:
    assert remove("demo", "--yes").exit_code == 0
    before = files()
    assert "mine is the only data set" in remove("mine", "--yes").output
    assert files() == before


def test_aliases_of_an_entry_are_named(project: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    text = text.replace("  mine-run:\n", "  mine-run: &base\n", 1)
    text = text.replace("\nevaluate:\n", "\n  on-demo:\n    <<: *base\n    dataset: demo\n\nevaluate:\n", 1)
    Path("params.yaml").write_text(text, encoding="utf-8")
    before = files()
    done = remove("mine", "--yes")
    assert done.exit_code == 1 and "what stays takes over what would go: found undefined alias 'base'" in done.output
    assert files() == before and Path("params.yaml").read_text(encoding="utf-8") == text


def test_while_a_stage_makes_some_of_it_all_stays(project: Path) -> None:
    before = files()
    with sole_writer(Path("runs/mine-run/model"), "training of mine-run"):
        done = remove("mine", "--yes")
    assert done.exit_code == 1 and "is running" in done.output
    assert files() == before
