"""The `selfalign` command: help at once, and mistakes as one line."""

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from manifests.schema import CaptionedImage
from manifests.tables import write_manifest
from pipeline.cli import main
from tests.pipeline.project import CHECKOUT, Project

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
STAGES = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ROW = CaptionedImage("1", "a.jpg", "0" * 64, 4, 3, "train", ("A dog.",))
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
    assert all(len(line.split(maxsplit=1)[1]) > 10 and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_in_one_line(folder: Project, shell: str) -> None:
    script = "from pipeline.cli import main; main(prog_name='selfalign')"
    command = [sys.executable, "-c", script]
    own = {"_SELFALIGN_COMPLETE": f"{shell}_complete", "COMP_WORDS": "selfalign se", "COMP_CWORD": "1"}
    own |= {"COMP_WORDS": "selfalign\nse", "COMP_CWORD": "se"} if shell == "fish" else {}
    made = subprocess.run(command, env=folder.environment | own, capture_output=True, text=True, check=True)
    assert {"search", "serve"} <= set(re.split(r"[\s,]+", made.stdout))
    own = {"_SELFALIGN_COMPLETE": f"{shell}_source"}
    source = subprocess.run(command, env=folder.environment | own, capture_output=True, text=True)
    assert "selfalign" in source.stdout and f"{shell}_complete" in source.stdout
    assert f"_SELFALIGN_COMPLETE={shell}_source" in README or shell == "zsh"


def test_help_loads_nothing_heavy(folder: Project) -> None:
    script = (
        "import sys\nfrom pipeline.cli import main\nmain(['--help'], standalone_mode=False)\n"
        f"print('loaded:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert folder.command(sys.executable, "-c", script).text.endswith("loaded: []\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("manifest", "demos"), "datasets has no 'demos' (did you mean 'demo'?)"),
        (("manifest", "demo"), "data/scenes"),
    ],
)
def test_a_mistake_is_one_line_without_traceback(folder: Project, arguments: tuple[str, ...], message: str) -> None:
    answer = selfalign(folder, *arguments)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ") and message in line and "Fix: " in line
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cost", "vsrn", "--repeats", "0"), "0 is not in the range x>=1"),
        (("clean", "--days", "-1"), "-1.0 is not in the range x>=0"),
        (("verify", "data", "--limit", "-1"), "-1 is not in the range x>=0"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[str, ...], message: str) -> None:
    answer = CliRunner().invoke(main, arguments)
    assert answer.exit_code == 2 and message in answer.output


def test_a_wrong_machine_setting_is_one_line(folder: Project) -> None:
    folder.environment["SELFALIGN_REDERS"] = "2"
    answer = selfalign(folder, "doctor")
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "SELFALIGN_REDERS" in line and "did you mean SELFALIGN_READERS?" in line


def without_privileges() -> None:
    """Root may write anywhere: take that from the process that is about to start, on Linux."""
    if os.geteuid() == 0:
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_folder_that_may_not_be_written_is_one_line(folder: Project) -> None:
    folder.root.chmod(0o555)
    command = [sys.executable, "-m", "pipeline.cli", "scenes"]
    answer = subprocess.run(
        command,
        cwd=folder.root,
        env=folder.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=without_privileges,
    )
    folder.root.chmod(0o755)
    assert answer.returncode == 1
    assert answer.stderr == "error: data: Permission denied. Fix: change who may read and write there.\n"


def test_an_interrupted_command_says_so_and_leaves_nothing(folder: Project) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "scenes"],
        cwd=folder.root,
        env=folder.environment,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests in the background had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not any(folder.root.rglob("*.png")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert message.splitlines()[-1] == "error: interrupted; start the same command again"
    assert sorted(path.name for path in folder.root.rglob("*") if path.is_file()) == ["params.yaml"]


def test_nobody_reading_is_one_line(folder: Project) -> None:
    write_manifest(folder.root / "data/demo/manifest", [ROW])
    reader, writer = os.pipe()
    os.close(reader)
    answer = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "export", "karpathy", "data/demo", "captions"],
        cwd=folder.root,
        env=folder.environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(writer)
    assert (answer.returncode, answer.stderr) == (1, "error: nobody reads this command's output any more\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data/a"), "/data/a: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", b"/data/a"), "/data/a: Read-only file system"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "nobody reads this command's output any more"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: OSError, message: str) -> None:
    answer = CliRunner().invoke(raising(error), [])
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    "bug",
    [PermissionError(errno.EPERM, "no"), FileNotFoundError(errno.ENOENT, "no", "/a"), KeyError("a"), ValueError()],
)
def test_a_bug_stays_one(bug: Exception) -> None:
    assert CliRunner().invoke(raising(bug), []).exception is bug


def raising(error: Exception) -> click.Group:
    """The command's own group, with a command that ends with an error."""

    def end() -> None:
        raise error

    return type(main)("group", callback=end, invoke_without_command=True)
