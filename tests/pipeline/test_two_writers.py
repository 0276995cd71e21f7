"""Two extractions of one data set at a time, and what a killed `dvc repro` leaves running: the store is sound."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.pipeline.project import Project, copy_checkout, shrink_demo

SHARDS, PER_SHARD = 120, 16
REGIONS, SIDECARS = "data/demo/regions", "cache/regions/*/*/*.json"
TOLD = "another extraction of demo is running: process"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with 120 shards of scenes, and the store that one extraction makes of them."""
    project = Project(tmp_path_factory.mktemp("large"))
    copy_checkout(project)
    params = shrink_demo(project.params)
    params["scenes"] |= {"train": SHARDS * PER_SHARD - 2, "val": 1, "test": 1}
    params["datasets"]["demo"]["regions"]["images_per_shard"] = PER_SHARD
    project.write_params(params)
    project.repro("manifest@demo")
    shutil.copy(project.root / "dvc.lock", project.root / "earlier.lock")
    project.repro("regions@demo")
    shutil.copytree(project.root / REGIONS, project.root / "expected")
    return project


@pytest.fixture
def fresh(large: Project) -> Iterator[Project]:
    """The project as before the first extraction; whatever a test starts there ends with it."""
    for folder in (REGIONS, "cache", ".dvc/cache/runs"):
        shutil.rmtree(large.root / folder, ignore_errors=True)
    shutil.copy(large.root / "earlier.lock", large.root / "dvc.lock")
    yield large
    for running in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if (running / "cwd").resolve() == large.root:
                os.kill(int(running.name), signal.SIGKILL)


def start(project: Project, *command: str, output: Path) -> subprocess.Popen:
    with open(output, "w") as file:
        return subprocess.Popen(
            command, cwd=project.root, env=project.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def require_sound(project: Project) -> None:
    assert "sound" in project.command("selfalign", "verify", REGIONS).text
    found, expected = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (project.root / REGIONS, project.root / "expected")
    )
    assert found == expected and len(found) > SHARDS
    assert not list((project.root / "data/demo").glob(".regions.*.tmp"))


@pytest.mark.parametrize("delay", [0, 4, 6, 8])
def test_two_extractions_make_one_sound_store(fresh: Project, delay: int, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("first", "second")]
    first = start(fresh, "selfalign", "regions", "demo", output=outputs[0])
    time.sleep(delay)
    second = start(fresh, "selfalign", "regions", "demo", output=outputs[1])
    statuses = [process.wait(300) for process in (first, second)]
    texts = [output.read_text() for output in outputs]
    assert statuses == [0, 0], texts
    assert sum(TOLD in text for text in texts) == 1, texts
    assert sum("is made already" in text for text in texts) == 1, texts
    require_sound(fresh)


@pytest.mark.parametrize("shards", [0, 20, 45, 70, 100])
def test_what_a_killed_dvc_leaves_running_spoils_nothing(fresh: Project, shards: int, tmp_path: Path) -> None:
    killed = start(fresh, "dvc", "repro", "regions@demo", output=tmp_path / "killed")
    deadline = time.monotonic() + 120
    while len(list(fresh.root.glob(SIDECARS))) < shards or not (fresh.root / "cache").exists():
        assert killed.poll() is None and time.monotonic() < deadline, (tmp_path / "killed").read_text()
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    repeated = fresh.repro("regions@demo").text
    require_sound(fresh)
    if shards < 50:  # otherwise what was left running may have ended before the next one began
        assert TOLD in repeated and "is made already" in repeated, repeated
    assert "Data and pipelines are up to date" in fresh.command("dvc", "status", "regions@demo").text
