"""The pipeline as its users run it: `dvc repro` on 80 scenes and 11 pictures, and what each change reruns."""

import csv
import re
import shutil

import pytest
import yaml

from tests.pipeline.project import CHECKOUT, PICTURES, Project, Result

DATASETS = ("demo", "pictures")
RUNS = ("vsrn", "vsrn-selfalign", "on-pictures")
RECALLS = tuple(f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
WEIGHTS = "extract/detectors/weights/demo.safetensors"

pytestmark = pytest.mark.usefixtures("first_repro")


def test_everything_runs_once_but_the_frozen_detector(project: Project, first_repro: Result) -> None:
    fanned = [f"{stage}@{name}" for stage in ("manifest", "regions", "tokens", "pack") for name in DATASETS]
    fanned += [f"{stage}@{name}" for stage in ("train", "evaluate") for name in RUNS]
    assert sorted(first_repro.stages) == sorted(["scenes", *fanned, "report"])
    assert (project.root / WEIGHTS).read_bytes() == (CHECKOUT / WEIGHTS).read_bytes()


def test_report_compares_the_runs(project: Project) -> None:
    page = (project.root / "report" / "index.html").read_text(encoding="utf-8")
    for run in RUNS:
        assert run in page
    table = project.command("selfalign", "metrics").text
    for name in (*RUNS, *DATASETS, str(project.root / "report" / "index.html")):
        assert name in table


@pytest.mark.parametrize(("run", "images"), [("vsrn", 20), ("vsrn-selfalign", 20), ("on-pictures", 3)])
def test_metrics_are_recalls_of_the_test_split(project: Project, run: str, images: int) -> None:
    metrics = project.metrics(run)
    assert (metrics["split"], metrics["images"], metrics["left_out"]) == ("test", images, 0)
    assert metrics["captions"] == (100 if run != "on-pictures" else sum(n for *_, split, n in PICTURES if split == "test"))
    for direction in ("i2t", "t2i"):
        r1, r5, r10 = (metrics[f"{direction}_r{k}"] for k in (1, 5, 10))
        assert 0 <= r1 <= r5 <= r10 <= 100
    assert metrics["rsum"] == pytest.approx(sum(metrics[key] for key in RECALLS), abs=1e-3)
    assert metrics["rsum"] > 0


def test_correspondence_is_told_where_the_truth_is_known(project: Project) -> None:
    for run in ("vsrn", "vsrn-selfalign"):
        found = project.metrics(run)["correspondence"]
        assert 0 < found["chance"] < 1 and 0 <= found["accuracy"] <= found["ceiling"] <= 1
    assert "correspondence" not in project.metrics("on-pictures")


def test_curves_have_a_row_an_epoch(project: Project) -> None:
    for run, terms in (("vsrn", {"triplet"}), ("on-pictures", {"triplet", "lca", "cra"})):
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
        assert would_run(project) == {"train@vsrn", "evaluate@vsrn", "report"}


def test_another_detector_parameter_reruns_one_data_set_from_regions_on(project: Project) -> None:
    with project.restored() as params:
        params["datasets"]["demo"]["regions"]["detector"]["shortest"] = 128
        project.write_params(params)
        demo_runs = {f"{stage}@{run}" for stage in ("train", "evaluate") for run in ("vsrn", "vsrn-selfalign")}
        assert would_run(project) == {"regions@demo", "pack@demo", "report"} | demo_runs


def test_other_word_settings_rerun_one_data_set_from_tokens_on(project: Project) -> None:
    with project.restored() as params:
        params["datasets"]["pictures"]["tokens"]["min_count"] = 2
        project.write_params(params)
        expected = {"tokens@pictures", "pack@pictures", "train@on-pictures", "evaluate@on-pictures", "report"}
        assert would_run(project) == expected


def test_a_new_run_runs_alone(project: Project) -> None:
    with project.restored() as params:
        params["runs"]["another"] = params["runs"]["vsrn"] | {"seed": 1}
        project.write_params(params)
        assert would_run(project) == {"train@another", "evaluate@another", "report"}


def test_one_stage_runs_alone(project: Project) -> None:
    before = project.digests("runs/on-pictures")
    with project.restored():
        forget(project, "evaluate@on-pictures", "runs/on-pictures/evaluation", "runs/on-pictures/metrics.json")
        assert project.repro("-s", "evaluate@on-pictures").stages == ["evaluate@on-pictures"]
        assert project.digests("runs/on-pictures") == before


def test_a_killed_extraction_continues_to_the_same_bytes(project: Project) -> None:
    before = project.digests("data/demo/regions")
    assert len([name for name in before if name.endswith(".h5")]) == 5
    with project.restored():
        forget(project, "regions@demo", "data/demo/regions")
        project.kill_when(".staging/*/000001.json", "-s", "regions@demo")
        assert not (project.root / "data/demo/regions").exists()
        finished = len(list(project.root.glob(".staging/*/00000?.json")))
        assert 2 <= finished < 5
        resumed = project.repro()
        assert resumed.stages == ["regions@demo"]
        assert f"continuing: {16 * finished} of 80 pictures" in resumed.text
        assert project.digests("data/demo/regions") == before
        assert not any((project.root / ".staging").iterdir())


def test_forced_reruns_give_the_same_bytes(project: Project) -> None:
    stages = {"regions@pictures", "tokens@demo", "pack@demo"}
    folders = [f"data/{dataset}/{stage}" for stage, dataset in (name.split("@") for name in stages)]
    before = project.digests(*folders)
    assert {name.rsplit(".")[-1] for name in before} >= {"h5", "tar", "json", "jsonl"}
    assert set(project.repro("-f", "-s", *stages).stages) == stages
    assert project.digests(*folders) == before


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
    """The stages that `dvc repro` would run; a dry run stops at what has changed itself unless it is told to go on."""
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
        found |= {(fold(a), fold(b)) for left, right in zip(parts, parts[1:], strict=False) for a in left for b in right}
    return found
