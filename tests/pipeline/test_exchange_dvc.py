"""An imported data set in params.yaml is an ordinary one: `dvc repro` runs its stages, and those that a change asks."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest

from extract.stores.recipe import read_recipe
from extract.stores.regions import RegionStore
from tests.pipeline.project import Project, copy_checkout, shrink

STAGES = ("manifest", "regions", "tokens", "pack", "train", "evaluate")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The demo's stores, exported; data sets that import them, without any picture; and a run on one of them."""
    project = Project(tmp_path_factory.mktemp("project"))
    copy_checkout(project)
    nothing = tmp_path_factory.mktemp("nothing")
    params = shrink(project.params, pictures=nothing, encoder=nothing)
    del params["datasets"]["pictures"], params["packs"]["pictures"]
    params["runs"] = {"on-scan": params["runs"]["vsrn"]}
    params |= {section: {} for section in ("text_features", "teachers", "ensembles", "studies")}
    project.write_params(params)
    project.repro("-s", "scenes", "manifest@demo", "regions@demo", "tokens@demo")
    files = tmp_path_factory.mktemp("files")
    for format in ("scan", "butd-tsv"):
        project.command("selfalign", "export", format, "data/demo", str(files / format))
    demo = params["datasets"]["demo"]
    scan = {"format": "scan", **dict.fromkeys(("images", "captions", "watch"), str(files / "scan"))}
    butd = {"format": "butd-tsv", "images": str(files / "butd-tsv" / "regions.tsv")}
    butd |= {"captions": str(files / "butd-tsv" / "captions.json"), "watch": butd["images"]}
    for name, source, regions in (("scan", scan, {"boxes": "xyxy"}), ("butd", butd, {})):
        imported = {"source": source, "regions": {"images_per_shard": 32, **regions}}
        params["datasets"][name] = copy.deepcopy(demo) | imported
        params["packs"] = {"demo": {}, "scan": {}}
    params["runs"]["on-scan"]["dataset"] = "scan"
    project.write_params(params)
    return project


@pytest.fixture(scope="module")
def reproduced(project: Project) -> list[str]:
    """The stages that ran for the SCAN files."""
    return project.repro("evaluate@on-scan", "pack@scan").stages


def test_every_stage_of_an_imported_set_runs(project: Project, reproduced: list[str]) -> None:
    assert sorted(reproduced) == sorted(
        f"{stage}@{'on-scan' if stage in ('train', 'evaluate') else 'scan'}" for stage in STAGES
    )
    stages = [line.split()[0] for line in project.command("dvc", "stage", "list").text.splitlines()]
    assert [stage for stage in stages if stage.startswith("pack@")] == ["pack@demo", "pack@scan"]  # what `packs` names
    metrics = project.metrics("on-scan")
    assert (metrics["split"], metrics["images"], metrics["captions"]) == ("test", 20, 100)
    assert metrics["rsum"] > 0


def test_its_store_is_the_one_that_was_exported(project: Project, reproduced: list[str]) -> None:
    ours, theirs = (RegionStore(project.root / "data" / name / "regions") for name in ("demo", "scan"))
    assert theirs.ids == ours.ids
    for row in range(len(ours)):
        np.testing.assert_array_equal(theirs.regions(row).features, ours.regions(row).features)
        np.testing.assert_array_equal(theirs.regions(row).boxes, ours.regions(row).boxes)
    recipe, _ = read_recipe(project.root / "data" / "scan" / "regions" / "train")
    assert recipe["imported"]["format"] == "scan" and "train_ims.npy" in recipe["imported"]["files"]
    for store in ("regions", "pack"):
        project.command("selfalign", "verify", f"data/scan/{store}")
        project.command("selfalign", "card", f"data/scan/{store}")


def test_the_report_does_without_pictures(project: Project, reproduced: list[str]) -> None:
    assert project.repro("-s", "report").stages == ["report"]
    assert "on-scan" in (project.root / "report" / "index.html").read_text(encoding="utf-8")


def test_nothing_runs_again_until_something_changes(project: Project, reproduced: list[str]) -> None:
    assert project.repro("evaluate@on-scan", "pack@scan").stages == []
    with project.restored() as params:
        params["datasets"]["scan"]["regions"]["precision"] = "float32"
        project.write_params(params)
        dry = project.repro("--dry", "--force-downstream", "evaluate@on-scan", "pack@scan").stages
        assert set(dry) == {"regions@scan", "pack@scan", "train@on-scan", "evaluate@on-scan"}


def test_a_changed_file_is_imported_again(project: Project, reproduced: list[str]) -> None:
    path = Path(project.params["datasets"]["scan"]["source"]["images"]) / "dev_ims.npy"
    features = np.load(path)
    features[0, 0, 0] += 1
    np.save(path, features)
    output = project.command("selfalign", "check", "scan", ends_with=1).text
    assert f"{path}: changed" in output and "scan: 1 files changed, of 80 images; restore them, or `dvc repro" in output
    assert project.repro("regions@scan").stages == ["manifest@scan", "regions@scan"]
    store = RegionStore(project.root / "data" / "scan" / "regions")
    assert store.regions(48).features[0, 0] == features[0, 0, 0].astype(np.float16)


def test_features_with_a_captions_file_are_the_same_data_set(project: Project, reproduced: list[str]) -> None:
    assert set(project.repro("regions@butd", "tokens@butd").stages) == {"manifest@butd", "regions@butd", "tokens@butd"}
    demo, butd = (project.digests(f"data/{name}/tokens") for name in ("demo", "butd"))
    assert {name.replace("/butd/", "/demo/"): digest for name, digest in butd.items()} == demo


@pytest.mark.slow
def test_what_was_imported_outside_the_pipeline_is_added_and_trained_on(
    project: Project, reproduced: list[str], tmp_path: Path
) -> None:
    """Its features, captions and splits, and nothing of the files that it was made of."""
    brought = shutil.copytree(project.params["datasets"]["scan"]["source"]["images"], tmp_path / "files")
    out, name = str(tmp_path / "made"), "made"
    project.command("selfalign", "import", "scan", str(brought), out, "--boxes", "xyxy", "--precision", "float32")
    shutil.rmtree(brought)
    with project.restored():
        output = project.command("selfalign", "add", name, "--features", "store", out).text
        assert "80 images" in output and "400 captions" in output and "48 train, 12 val, 20 test" in output
        assert project.params["datasets"][name]["regions"]["precision"] == "float32"
        params = project.params
        params["runs"][f"{name}-vse-infinity"] |= {"epochs": 2}
        project.write_params(params)
        made = project.repro(f"evaluate@{name}-vse-infinity").stages
        assert {f"{stage}@{name}" for stage in ("manifest", "regions", "tokens")} <= set(made)
        metrics = project.metrics(f"{name}-vse-infinity")
        assert (metrics["images"], metrics["captions"]) == (20, 100) and metrics["rsum"] > 0
        theirs, ours = RegionStore(Path(out) / "regions"), RegionStore(project.root / "data" / name / "regions")
        assert ours.ids == theirs.ids
        np.testing.assert_array_equal(ours.regions(7).features, theirs.regions(7).features)
        assert project.repro(f"evaluate@{name}-vse-infinity").stages == []


def test_a_mistake_is_one_line(project: Project, reproduced: list[str]) -> None:
    with project.restored() as params:
        del params["datasets"]["scan"]["regions"]["boxes"]
        project.write_params(params)
        text = project.command("selfalign", "regions", "scan", ends_with=1).text
        assert "error: " in text and "regions.boxes" in text and "Traceback" not in text
