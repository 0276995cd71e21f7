"""From what people have to a trained run: `selfalign add`, then `dvc repro`, and no editor."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests.left_out import FILE
from manifests.manifest import hashed_split
from manifests.tables import Manifest
from pipeline.cli import main
from pipeline.params import read_params
from tests.extract.test_exchange_brought import REASONS, write_fifty_broken
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
    output = command("add", "mine", *brought.options)
    source = read_params().dataset("mine").source
    printed = {"folder": "read as CSV"}.get(brought.reader, f"read as {brought.reader}")
    assert source.format == brought.reader and printed in output
    assert "11 pictures" in output and read_params().run("mine-vse-infinity").dataset == "mine"
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
def test_fifty_broken_rows_are_one_error_or_listed_and_the_rest_trains(tmp_path: Path) -> None:
    """As among 100,000: here fewer, since a row costs what it costs."""
    project = Project(tmp_path / "project")
    project.root.mkdir()
    copy_checkout(project)
    images, captions, sound = write_fifty_broken(tmp_path, 1000)
    brought = ("--features", "butd-tsv", str(images), "--captions", str(captions), "--language", "blank:en")
    assert f"{captions}, read as CSV" in project.command("selfalign", "add", "many", *brought).text
    output = project.command("dvc", "repro", "manifest@many", ends_with=255).text
    error = next(line for line in output.splitlines() if line.startswith("error: "))
    assert "50 mistakes (40 broken rows, 10 repeated rows)" in error and error.count("; row ") == 9
    listing = Path("data/many/manifest-refused.jsonl")
    assert f"all of them are listed in {listing}" in error and "`source.unreadable: skip`" in error
    assert len((project.root / listing).read_text().splitlines()) == 50 and "Traceback" not in output

    project.command("selfalign", "remove", "many", "--yes")
    project.command("selfalign", "add", "many", *brought, "--skip")
    params = project.params
    params["runs"]["many-vse-infinity"] |= {"epochs": 1}
    params["runs"]["many-vse-infinity"]["base"]["dim"] = 16
    project.write_params(params)
    project.repro("evaluate@many-vse-infinity")
    listed = [json.loads(line) for line in (project.root / "data/many/manifest" / FILE).read_text().splitlines()]
    assert [sum(part in item["reason"] for item in listed) for part in REASONS] == [10] * 5
    assert Manifest.open(project.root / "data/many/manifest").ids == sound
    assert project.metrics("many-vse-infinity")["rsum"] > 0


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
