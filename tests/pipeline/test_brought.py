"""From what people have to a trained run: `selfalign add`, then `dvc repro`, and no editor."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests.manifest import hashed_split
from manifests.tables import Manifest
from pipeline.cli import main
from pipeline.params import read_params
from tests.pipeline.brought import KINDS, bring, rows_of
from tests.pipeline.project import CHECKOUT, Project, copy_checkout, take_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 11 pictures and Karpathy's JSON of them, `captions.json`."""
    folder = tmp_path_factory.mktemp("photographs")
    take_pictures(folder)
    return folder


def command(*arguments: str, ends_with: int = 0) -> str:
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == ends_with, done.output
    return done.output


@pytest.mark.parametrize("kind", KINDS)
def test_every_captions_file_becomes_a_manifest(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(CHECKOUT / "params.yaml", tmp_path)
    brought, rows = bring(kind, pictures, tmp_path), rows_of(pictures)
    told = command("add", "mine", *brought.options)
    source = read_params().dataset("mine").source
    assert source.format == brought.reader and f"read as {brought.reader}" in told
    assert "11 pictures" in told and read_params().run("mine-vse-infinity").dataset == "mine"
    command("manifest", "mine")
    found = list(Manifest.open(Path("data/mine/manifest")).captioned)
    if kind == "tar shards":
        assert sorted(row.captions for row in found) == sorted((texts[0],) for _, _, texts in rows)
    else:
        assert sorted((Path(row.path).name, row.captions) for row in found) == sorted(
            (name, tuple(texts)) for name, _, texts in rows
        )
    if brought.splits:
        splits = {name: split for name, split, _ in rows}
        assert all(row.split == splits[Path(row.path).name] for row in found)
    else:
        fractions = source.val_fraction, source.test_fraction
        assert all(row.split == hashed_split(row.id, *fractions) for row in found)
        assert {row.split for row in found} == {"train", "val", "test"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["COCO's folder", "tar shards"])
def test_two_of_them_are_trained_and_evaluated(tmp_path: Path, pictures: Path, kind: str) -> None:
    project = Project(tmp_path / "project")
    project.root.mkdir()
    copy_checkout(project)
    project.command("selfalign", "add", "mine", *bring(kind, pictures, tmp_path).options)
    made = project.repro("evaluate@mine-vse-infinity").stages
    of_data = {f"{stage}@mine" for stage in ("manifest", "regions", "tokens", "text_features")}
    assert set(made) == of_data | {"train@mine-vse-infinity", "evaluate@mine-vse-infinity"}
    metrics = project.metrics("mine-vse-infinity")
    tested = [row for row in Manifest.open(project.root / "data/mine/manifest").captioned if row.split == "test"]
    assert metrics["images"] == len(tested) and metrics["captions"] == sum(len(row.captions) for row in tested)
    assert metrics["rsum"] > 0 and project.repro("evaluate@mine-vse-infinity").stages == []
