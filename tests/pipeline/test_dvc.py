"""The pipeline as its users run it: `dvc repro` on 80 scenes and 11 pictures, and what each change reruns."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import main
from tests.pipeline.project import CHECKOUT, PICTURES, Project, Result

DATASETS = ("demo", "pictures")
RUNS = ("vsrn", "vsrn-selfalign", "on-pictures")
ENSEMBLE = "ensemble@vsrn-both"
STUDIES = {"study@codebook-size", "study@part-of-speech"}
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
WEIGHTS = "demo/weights/demo.safetensors"

pytestmark = pytest.mark.usefixtures("repeated")


def test_a_killed_repro_is_continued(killed: int, repeated: Result) -> None:
    fanned = [f"{stage}@{name}" for stage in ("regions", "tokens", "pack") for name in DATASETS]
    fanned += [f"{stage}@{name}" for stage in ("train", "evaluate") for name in RUNS]
    fanned += ["text_features@pictures", "teachers@pictures"]
    expected = [*fanned, *STUDIES, ENSEMBLE, "report"]
    assert sorted(repeated.stages) == sorted(expected)  # scenes and manifest had been finished
    assert 32 <= killed < 80
    assert f"regions demo: 80 pictures, {80 - killed} computed, {killed} reused" in repeated.text


@pytest.mark.parametrize(
    ("store", "names", "links"),
    [("regions", 3, 6), ("text_features", 3, 1), ("tokens", 2, 1), ("teachers", 2, 2), ("pack", 2, 6)],
)
def test_a_file_is_on_the_disk_once(project: Project, store: str, names: int, links: int) -> None:
    """A shard has a name in the store and one in DVC's cache, and one in ours where ours keeps it."""
    dataset = "demo" if store in ("regions", "pack") else "pictures"
    folder = project.root / "data" / dataset / store
    kept = [path.stat().st_ino for path in (project.root / ".dvc/cache").rglob("*") if path.is_file()]
    ours = [path.stat().st_ino for path in (project.root / "cache").rglob("*.h5")]
    found = [path for path in folder.rglob("*") if path.suffix in (".h5", ".tar")]
    assert len(found) == links
    for path in found:
        state = path.stat()
        assert state.st_nlink == names and kept.count(state.st_ino) == 1 and ours.count(state.st_ino) == names - 2
    shutil.rmtree(folder)
    project.command("dvc", "checkout", f"{store}@{dataset}")
    assert [path.stat().st_nlink for path in found] == [names] * links


def test_made_again_uninterrupted_the_bytes_are_the_same(project: Project) -> None:
    stages = ["regions@demo", "tokens@demo", "pack@demo"]
    folders = ["data/demo/regions", "data/demo/tokens", "data/demo/pack"]
    before = project.digests(*folders)
    assert len([name for name in before if name.startswith("data/demo/regions") and name.endswith(".h5")]) == 6
    assert "data/demo/tokens/tokens.h5" in before and any(name.endswith(".tar") for name in before)
    again = project.repro("-f", "-s", *stages)
    assert sorted(again.stages) == sorted(stages) and "regions demo: 80 pictures, 0 computed, 80 reused" in again.text
    assert project.digests(*folders) == before


def test_the_frozen_detector_is_left_alone(project: Project, repeated: Result) -> None:
    assert "detector" not in repeated.stages and "'detector' is frozen" in repeated.text
    assert (project.root / WEIGHTS).read_bytes() == (CHECKOUT / WEIGHTS).read_bytes()


def test_report_and_table_name_the_runs(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "".join((project.root / "report" / f"{name}.html").read_text("utf-8") for name in ("index", "pictures"))
    monkeypatch.chdir(project.root)
    table = CliRunner().invoke(main, ["metrics"], catch_exceptions=False).output
    for name in (*RUNS, *DATASETS):
        assert name in page and name in table
    assert str(project.root / "report" / "index.html") in table


@pytest.mark.parametrize(("study", "values"), [("codebook-size", ["4", "8"]), ("part-of-speech", ["NOUN", "all"])])
def test_a_study_has_a_row_for_each_value(project: Project, study: str, values: list[str]) -> None:
    with open(project.root / "studies" / study / "table.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == values
    for row, size in zip(rows, (4, 8) if study == "codebook-size" else (32, 32), strict=True):
        assert float(row["low"]) <= float(row["rsum"]) <= float(row["high"])
        assert 1 <= float(row["in_use"]) <= size


def test_one_more_value_reruns_one_study(project: Project) -> None:
    with project.restored() as params:
        params["studies"]["codebook-size"]["vary"]["losses.lca.num_concepts"].append(16)
        project.write_params(params)
        assert would_run(project) == {"study@codebook-size", "report"}


def test_plots_are_drawn_by_dvc(project: Project) -> None:
    project.command("dvc", "plots", "show", "--out", "plots")
    page = (project.root / "plots" / "index.html").read_text(encoding="utf-8")
    for name in ("R@sum on the validation split", "Codebook size", "Part of speech"):
        assert name in page


def test_an_ensemble_has_figures_of_its_own(project: Project) -> None:
    figures = json.loads((project.root / "ensembles" / "vsrn-both" / "figures.json").read_text(encoding="utf-8"))
    assert figures["runs"] == ["vsrn", "vsrn-selfalign"] and figures["images"] == 20
    assert 0 < figures["rsum"] <= 600


@pytest.mark.parametrize(("run", "images"), [("vsrn", 20), ("vsrn-selfalign", 20), ("on-pictures", 3)])
def test_metrics_are_recalls_of_the_test_split(project: Project, run: str, images: int) -> None:
    metrics = project.metrics(run)
    assert (metrics["split"], metrics["images"], metrics["left_out"]) == ("test", images, 0)
    on_pictures = sum(captions for _, split, captions in PICTURES if split == "test")
    assert metrics["captions"] == (on_pictures if run == "on-pictures" else 100)
    for direction in ("i2t", "t2i"):
        r1, r5, r10 = (metrics[f"{direction}_r{k}"] for k in (1, 5, 10))
        assert 0 <= r1 <= r5 <= r10 <= 100
    assert metrics["rsum"] == pytest.approx(sum(metrics[key] for key in RECALLS), abs=1e-3)
    assert metrics["rsum"] > 0


def test_correspondence_is_reported_where_the_truth_is_known(project: Project) -> None:
    for run in ("vsrn", "vsrn-selfalign"):
        found = project.metrics(run)["correspondence"]
        assert 0 < found["chance"] < 1 and 0 <= found["accuracy"] <= found["ceiling"] <= 1
    assert "correspondence" not in project.metrics("on-pictures")


def test_curves_have_a_row_an_epoch(project: Project) -> None:
    for run, terms in (("vsrn", {"triplet"}), ("on-pictures", {"triplet", "lca", "cra", "csa", "usa"})):
        with open(project.root / "runs" / run / "epochs.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["epoch"] for row in rows] == ["0", "1"]
        assert terms <= set(rows[0]) and "val_rsum" in rows[0]


def test_a_second_repro_runs_nothing(project: Project) -> None:
    again = project.repro()
    assert again.stages == [] and "Data and pipelines are up to date" in again.text


def test_other_epochs_rerun_one_run(project: Project) -> None:
    with project.restored() as params:
        params["runs"]["vsrn"]["epochs"] += 1
        project.write_params(params)
        assert would_run(project) == {"train@vsrn", "evaluate@vsrn", ENSEMBLE, "report"}


def test_another_detector_parameter_reruns_one_data_set_from_regions_on(project: Project) -> None:
    with project.restored() as params:
        params["datasets"]["demo"]["regions"]["detector"]["shortest"] = 128
        project.write_params(params)
        demo_runs = {f"{stage}@{run}" for stage in ("train", "evaluate") for run in ("vsrn", "vsrn-selfalign")}
        assert would_run(project) == {"regions@demo", "pack@demo", ENSEMBLE, "report"} | STUDIES | demo_runs


def test_a_new_run_runs_alone(project: Project) -> None:
    with project.restored() as params:
        params["runs"]["another"] = params["runs"]["vsrn"] | {"seed": 1}
        project.write_params(params)
        assert would_run(project) == {"train@another", "evaluate@another", ENSEMBLE, "report"}


def test_another_layer_reruns_the_text_features_and_what_reads_them(project: Project) -> None:
    with project.restored() as params:
        params["text_features"]["pictures"]["layer"] = 1
        project.write_params(params)
        stale = {"text_features@pictures", "train@on-pictures", "evaluate@on-pictures", ENSEMBLE, "report"}
        assert would_run(project) == stale


def test_another_teacher_reruns_what_learns_from_it(project: Project) -> None:
    with project.restored() as params:
        params["teachers"]["pictures"]["captions"]["dim"] = 4
        project.write_params(params)
        stale = {"teachers@pictures", "train@on-pictures", "evaluate@on-pictures", ENSEMBLE, "report"}
        assert would_run(project) == stale


def test_a_run_that_reads_other_words_reruns_alone(project: Project) -> None:
    with project.restored() as params:
        params["runs"]["on-pictures"]["text"] = {"reads": "tokens"}
        params["text_features"] = {}
        project.write_params(params)
        assert would_run(project) == {"train@on-pictures", "evaluate@on-pictures", ENSEMBLE, "report"}


def test_a_reworded_caption_reruns_no_regions(project: Project) -> None:
    captions = Path(project.params["datasets"]["pictures"]["source"]["captions"])
    before, manifest = captions.read_text(encoding="utf-8"), project.digests("data/pictures/manifest")
    with project.restored():
        first = json.loads(before)["images"][0]["sentences"][0]["raw"]
        captions.write_text(before.replace(json.dumps(first), json.dumps(f"{first} Again."), 1), encoding="utf-8")
        try:
            assert project.repro("-s", "manifest@pictures").stages == ["manifest@pictures"]
            changed = [
                name for name, digest in project.digests("data/pictures/manifest").items() if manifest[name] != digest
            ]
            assert changed == ["data/pictures/manifest/captions.arrow"]
            stale = would_run(project)
        finally:
            captions.write_text(before, encoding="utf-8")
    project.command("dvc", "checkout", "-f", "data/pictures/manifest")
    assert project.digests("data/pictures/manifest") == manifest
    assert {"tokens@pictures", "pack@pictures"} <= stale and "regions@pictures" not in stale


def test_a_clone_without_pictures_and_captions_keeps_its_manifest(project: Project, tmp_path: Path) -> None:
    clone = Project(shutil.copytree(project.root, tmp_path / "clone", symlinks=True))
    manifest, there = clone.digests("data/pictures/manifest"), tmp_path / "pictures"
    there.mkdir()
    params = clone.params
    source = params["datasets"]["pictures"]["source"]
    shutil.copy(source["captions"], there)
    source |= {"images": str(there), "captions": str(there / "captions.json"), "watch": str(there / "captions.json")}
    clone.write_params(params)
    output = clone.command("dvc", "repro", "manifest@pictures", "regions@pictures", ends_with=255).text
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "none of 11 pictures is there" in line and "'photo 0.jpg'" in line and "Traceback" not in output
    (there / "captions.json").unlink()
    output = clone.command("dvc", "repro", "manifest@pictures", ends_with=255).text
    assert f"{there / 'captions.json'}" in output and "Traceback" not in output
    assert clone.digests("data/pictures/manifest") == manifest and len(manifest) == 3


def test_one_stage_runs_alone(project: Project) -> None:
    before = project.digests("runs/on-pictures")
    with project.restored():
        forget(project, "evaluate@on-pictures", "runs/on-pictures/evaluation", "runs/on-pictures/metrics.json")
        assert project.repro("-s", "evaluate@on-pictures").stages == ["evaluate@on-pictures"]
        assert project.digests("runs/on-pictures") == before


def test_dag_is_the_diagram_in_the_readme(project: Project) -> None:
    dot = project.command("dvc", "dag", "--dot").text
    dag = {(fold(a), fold(b)) for a, b in re.findall(r'"(.+?)" -> "(.+?)"', dot)}
    readme = CHECKOUT / "README.md"
    assert readme.exists(), "there is no README.md yet"
    diagrams = re.findall(r"```mermaid\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert diagrams, "README.md has no mermaid diagram"
    assert edges(diagrams[0]) == dag


def test_mermaid_is_read_in_all_its_spellings() -> None:
    diagram = """
        flowchart LR
        %% a comment
        scenes[scenes] --> manifest["manifest@D"]
        a --> b & c(round) --> d{{six}};
        b -->|a label| e
        b -- "another" --> f
        d ==> g:::wide
        style a fill:#fff
    """
    expected = {"scenes manifest", "a b", "a c", "b d", "c d", "b e", "b f", "d g"}
    assert {" ".join(edge) for edge in edges(diagram)} == expected


def would_run(project: Project) -> set[str]:
    """The stages that `dvc repro` would run; a dry run stops at changed stages unless it has an option to go on."""
    return set(project.repro("--dry", "--force-downstream").stages)


def forget(project: Project, stage: str, *outs: str) -> None:
    """Make a stage as new to DVC: without its outputs, its entry in dvc.lock and the cache of earlier runs."""
    for out in (project.root / name for name in outs):
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    shutil.rmtree(project.root / ".dvc/cache/runs", ignore_errors=True)
    lock = project.root / "dvc.lock"
    known = yaml.safe_load(lock.read_text(encoding="utf-8"))
    del known["stages"][stage]
    lock.write_text(yaml.safe_dump(known), encoding="utf-8")


def fold(stage: str) -> str:
    """A stage's name without what it is fanned out over."""
    return stage.split("@")[0]


def edges(mermaid: str) -> set[tuple[str, str]]:
    """The edges of a mermaid flowchart as pairs of node ids; labels, shapes and styles don't matter."""
    found = set()
    for line in mermaid.splitlines():
        line = re.sub(r"%%.*", "", line)
        line = re.sub(r"(?:--|==)\s*\"[^\"]*\"\s*(?=--|==)", "", line)  # -- "label" -->
        line = re.sub(r"\|[^|]*\|", "", line)  # -->|label|
        line = re.sub(r"[\[({].*?[\])}]+", "", line).replace(";", "")  # [label], (label), {{label}}
        parts = [
            [re.sub(r":::.*", "", node.strip()) for node in part.split("&")]
            for part in re.split(r"\s*(?:-->|---|==>|-\.->)\s*", line.strip())
        ]
        steps = zip(parts, parts[1:], strict=False)
        found |= {(fold(a), fold(b)) for left, right in steps for a in left for b in right}
    return found
