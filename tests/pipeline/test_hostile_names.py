"""Names of data sets and runs that a shell would run, or a command take for an option, through DVC itself."""

import copy
import json

import pytest

from tests.extract.region_files import scene_files
from tests.pipeline.project import Project, copy_checkout, shrink_demo

NAMES = ("my data", "a; touch made", "$(touch made)", "`touch made`", "it's", 'say "x"', "-rf", "häuser", "../up")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two pictures, of which every name makes a data set and a run."""
    project = Project(tmp_path_factory.mktemp("project"))
    copy_checkout(project)
    params = shrink_demo(project.params) | {"teachers": {}, "studies": {}, "ensembles": {}, "optional": {}}
    own = params["datasets"].pop("demo")
    own["source"] = {"format": "folder", "images": "pictures", "captions": "captions.jsonl", "watch": "captions.jsonl"}
    (project.root / "pictures").mkdir()
    rows = []
    for (name, data), split in zip(scene_files(2).items(), ("train", "test"), strict=True):
        (project.root / "pictures" / name).write_bytes(data)
        rows.append({"image": name, "split": split, "captions": ["a ring"]})
    (project.root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params["datasets"] = {name: copy.deepcopy(own) for name in NAMES}
    params["runs"] = {name: params["runs"]["vsrn"] | {"dataset": name} for name in NAMES}
    params["packs"] = {}
    project.write_params(params)
    return project


@pytest.mark.parametrize("name", ["a; touch made", "$(touch made)", "-rf"])
def test_a_hostile_name_is_refused_by_the_stage_and_run_by_no_shell(project: Project, name: str) -> None:
    output = project.command("dvc", "repro", "-s", f"manifest@{name}", ends_with=255).text
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    for each in NAMES:
        assert f"datasets: {each!r} is no name" in line and f"runs: {each!r} is no name" in line
    assert line.endswith("a name has letters (A to Z, a to z), digits, - and _, and begins with a letter.")
    assert "Traceback" not in output and not list(project.root.rglob("made"))
    assert not any((project.root / "data" / each / "manifest").exists() for each in NAMES)


def test_a_name_on_the_command_line_is_a_name(project: Project) -> None:
    """Where nobody asked DVC: the command itself, whose shell is none."""
    output = project.command("selfalign", "manifest", "--", "-rf", ends_with=1).text
    assert "'-rf' is no name" in output and "Traceback" not in output
