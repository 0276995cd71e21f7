"""The `selfalign` command: help at once, mistakes as one line, and `doctor`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.doctor import examine
from pipeline.machine import PREFIX, Machine
from tests.pipeline.project import CHECKOUT, Project

STAGES = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
HEAVY = ("torch", "torchvision", "spacy", "transformers", "matplotlib", "h5py")


@pytest.fixture
def folder(tmp_path: Path) -> Project:
    """A folder with the committed parameters alone, in which this checkout's command runs."""
    (tmp_path / "params.yaml").write_bytes((CHECKOUT / "params.yaml").read_bytes())
    project = Project(tmp_path)
    project.environment["PYTHONPATH"] = str(CHECKOUT)
    project.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return project


def selfalign(folder: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(
        command, cwd=folder.root, env=folder.environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_names_every_stage(folder: Project) -> None:
    answer = selfalign(folder, "--help")
    assert answer.returncode == 0
    for stage in (*STAGES, "metrics", "doctor"):
        assert f"\n  {stage} " in answer.stdout


def test_every_command_says_what_it_does(folder: Project) -> None:
    listed = selfalign(folder, "--help").stdout.split("Commands:")[1].splitlines()[1:]
    assert len(listed) >= len(STAGES) + 2
    assert all(len(line.split(maxsplit=1)[1]) > 10 for line in listed)


def test_help_loads_nothing_heavy(folder: Project) -> None:
    script = (
        "import sys\nfrom pipeline.cli import main\nmain(['--help'], standalone_mode=False)\n"
        f"print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert folder.command(sys.executable, "-c", script).text.endswith("loaded: []\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("manifest", "demos"), "datasets has no 'demos' (did you mean 'demo'?)"),
        (("manifest", "demo"), "data/scenes"),
    ],
)
def test_a_mistake_is_one_line_without_traceback(folder: Project, arguments: tuple[str, ...], told: str) -> None:
    answer = selfalign(folder, *arguments)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ") and told in line and "Fix: " in line
    assert answer.stdout == ""


def test_a_wrong_machine_setting_is_one_line(folder: Project) -> None:
    folder.environment["SELFALIGN_REDERS"] = "2"
    answer = selfalign(folder, "doctor")
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "SELFALIGN_REDERS" in line and "did you mean SELFALIGN_READERS?" in line


def test_doctor_shows_settings_versions_and_data(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.root)
    monkeypatch.setenv("SELFALIGN_THREADS", str(torch.get_num_threads()))
    monkeypatch.setenv("SELFALIGN_READERS", "7")
    answer = CliRunner().invoke(main, ["doctor"], catch_exceptions=False)
    assert answer.exit_code == 0
    lines = {line.split()[0]: line for line in answer.output.splitlines() if line.strip()}
    assert {PREFIX + name.upper() for name in Machine.model_fields} <= set(lines)
    assert lines["SELFALIGN_READERS"].split()[1:3] == ["7", "set"]
    assert "default" in lines["SELFALIGN_STAGING"]
    assert "torch" in lines and "MISSING" not in answer.output
    assert "not there yet: data/scenes/images" in lines["demo"]


def test_doctor_names_encoders_that_are_missing(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    params = folder.params
    params["datasets"]["demo"]["tokens"]["tokenizer"] = str(folder.root)
    params["text_features"] = {"demo": {"model": "nobody/first"}}
    params["runs"]["vsrn"]["text"] = {"reads": "tokens", "encoder": {"model": "nobody/second"}}
    params["teachers"] = {
        "demo": {"images": {"model": "nobody/third", "reads": "manifest"}, "captions": {"model": "lsa"}}
    }
    folder.write_params(params)
    monkeypatch.chdir(folder.root)
    assert "nobody/first, nobody/second, nobody/third" in examine(Machine(threads=torch.get_num_threads()))


def test_doctor_still_answers_with_broken_parameters(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.root / "params.yaml").write_text("scenes: {tran: 1}", encoding="utf-8")
    monkeypatch.chdir(folder.root)
    assert "scenes.tran: unknown key (did you mean 'train'?)" in examine(Machine(threads=torch.get_num_threads()))


def test_doctor_names_models_that_are_incomplete(folder: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    params = folder.params
    params["datasets"]["demo"]["tokens"]["tokenizer"] = str(folder.root)
    params["text_features"] = {"demo": {"model": "models/bert"}}
    params["teachers"] = {
        "demo": {"images": {"model": "models/vit", "reads": "manifest"}, "captions": {"model": "models/minilm"}}
    }
    folder.write_params(params)
    monkeypatch.chdir(folder.root)
    for model in ("bert", "vit", "minilm"):
        (Path("models") / model).mkdir(parents=True)
        (Path("models") / model / "config.json").write_text("{}")
    machine = Machine(threads=torch.get_num_threads())
    assert "models/bert, models/vit, models/minilm" in examine(machine)
    for model in ("bert", "vit", "minilm"):
        (Path("models") / model / "model.safetensors").write_bytes(b"")
    told = examine(machine)
    assert "models/vit" in told and "models/bert" not in told and "models/minilm" not in told
    Path("models/vit/preprocessor_config.json").write_text("{}")
    assert "models/" not in examine(machine)
