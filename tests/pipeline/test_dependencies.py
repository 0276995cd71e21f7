"""Every stage of dvc.yaml declares the code and the parameters that decide what it makes, and no others."""

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.imports import closure, import_graph, imports_of
from tests.pipeline.project import CHECKOUT

_DECLARED = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES: dict[str, dict[str, Any]] = {name: stage.get("do", stage) for name, stage in _DECLARED.items()}
# What no artifact depends on: errors, progress, how files are opened, written and locked, how parameters and names are
# checked, names of packages, which worker and device make it.
PLUMBING = {
    *("manifests/errors.py", "manifests/files.py", "manifests/locks.py", "manifests/progress.py", "manifests/jsonl.py"),
    *(
        "manifests/typed.py",
        "manifests/names.py",
        "manifests/registry.py",
        "manifests/opening.py",
        "manifests/host.py",
    ),
    *(f"extract/engine/{name}.py" for name in ("build", "cache", "code", "device", "finished", "maker")),
    *("extract/engine/tolerance.py", "extract/engine/workers.py"),
}
# How the manifest's tables and the files beside them look decides what its stage writes; others depend on the files.
FORMATS = {f"manifests/{name}.py" for name in ("schema", "tables", "arrow", "grounding", "coco_ids", "imported")}
# Imports that a stage doesn't follow: from what detectors share, the training takes only the record `Candidates`, and
# only the manifest stage asks exchange formats for their captions, and whether the tokens' language is there.
UNUSED = {
    "manifest": {"extract/text/words.py", "extract/text/scripts.py"},
    "detector": {"extract/vision/detectors/base.py"},
    "regions": {"manifests/source.py"},
}
# Parts that a stage finds by name.
PARTS = {
    "regions": {"demo/detector/demo.py"},
    "tokens": {"demo/language.py"},
    "teachers": {f"extract/teachers/{name}.py" for name in ("lsa", "regions_mean", "sentences", "vision")},
    "evaluate": {f"eval/metrics/{name}.py" for name in ("rouge_l", "spice", "unimodal", "eccv")},
}
# A path says where something lies, not what it is: the regions' pictures are checked by the manifest's sha256 sums.
PARAMS = {
    "scenes": ["scenes"],
    "detector": ["detector"],
    "manifest": ["datasets.${key}.source"],
    "regions": ["datasets.${key}.regions"],
    "tokens": ["datasets.${key}.tokens"],
    "text_features": ["text_features.${key}"],
    "teachers": ["teachers.${key}"],
    "pack": ["packs.${key}"],
    "train": ["runs.${key}"],
    "evaluate": ["evaluate", "runs.${key}.dataset", "runs.${key}.text"],
    "ensemble": ["ensembles.${key}", "evaluate"],
    "study": ["studies.${key}", "runs.${item.run}", "evaluate"],
    "report": ["report", "runs", "ensembles", "studies"],
}

GRAPH = import_graph(CHECKOUT)


def used(stage: str) -> set[str]:
    """The files that a stage's command imports from the floors below the pipeline, plumbing left out."""
    tree = ast.parse((CHECKOUT / "pipeline" / "cli.py").read_text(encoding="utf-8"))
    (command,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == stage)
    unused = UNUSED.get(stage, set())
    graph = {file: others - unused for file, others in GRAPH.items()}
    found = closure(graph, (imports_of(command, "pipeline/cli.py", CHECKOUT) - unused) | PARTS.get(stage, set()))
    related = PLUMBING | (set() if stage == "manifest" else FORMATS)
    related |= {file for file in found if file.startswith("pipeline/")}  # where things lie, and how fast they are made
    return {file for file in found - related if Path(file).name != "__init__.py"}


def code_deps(stage: str) -> list[str]:
    """The declared dependencies that are committed, not made or brought along."""
    made = ("data/", "runs", "ensembles", "studies", "benchmarks/", "${")
    return [dep for dep in STAGES[stage]["deps"] if not dep.startswith(made)]


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_every_imported_file_is_declared(stage: str) -> None:
    files = used(stage)
    assert files
    assert sorted(file for file in files if not any(covers(dep, file) for dep in code_deps(stage))) == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_declared_file_is_used(stage: str) -> None:
    assert [dep for dep in code_deps(stage) if not (CHECKOUT / dep).exists()] == []
    files = used(stage)
    assert [dep for dep in code_deps(stage) if not any(covers(dep, file) for file in files)] == []


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_those_that_the_command_reads(stage: str) -> None:
    assert STAGES[stage]["params"] == PARAMS[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_command_is_thin_and_described(stage: str) -> None:
    declared = STAGES[stage]
    assert declared["cmd"] == f"selfalign {stage}"  # whose data set or run is in DVC_STAGE
    assert "SELFALIGN_" not in str(declared)
    assert len(declared["desc"]) > 10
    assert "vars" not in declared and "wdir" not in declared


def test_regions_depend_on_no_caption() -> None:
    made = [dep for dep in STAGES["regions"]["deps"] if dep.startswith("data/")]
    assert made == ["data/${key}/manifest/images.arrow", "data/${key}/manifest/source.json"]
    watched = [dep for dep in STAGES["manifest"]["deps"] if dep.startswith("${")]
    assert watched == ["${item.source.captions}", "${item.source.watch}"]


def test_evaluation_depends_on_its_split_alone() -> None:
    regions = [dep for dep in STAGES["evaluate"]["deps"] if "/regions" in dep]
    assert regions == ["data/${item.dataset}/regions/${evaluate.split}"]


def test_every_out_of_value_is_left_to_its_stage() -> None:
    left = {
        stage: [all(out.values()) and next(iter(out.values()))["persist"] for out in declared["outs"]]
        for stage, declared in STAGES.items()
        if stage not in ("scenes", "detector")
    }
    assert all(all(persisting) for persisting in left.values())
    assert [next(iter(out)) for out in STAGES["regions"]["outs"]] == [
        f"data/${{key}}/regions/{split}" for split in ("train", "val", "test")
    ]


def test_it_reads_on_two_screens() -> None:
    stages, _, _ = (CHECKOUT / "dvc.yaml").read_text(encoding="utf-8").partition("\nartifacts:")
    assert len(stages.splitlines()) <= 170


def test_only_the_manifest_looks_at_the_source_files() -> None:
    looking = {stage for stage, declared in STAGES.items() if any("${item.source" in dep for dep in declared["deps"])}
    assert looking == {"manifest"}


def test_only_the_detector_is_frozen() -> None:
    assert [stage for stage, declared in STAGES.items() if declared.get("frozen")] == ["detector"]
