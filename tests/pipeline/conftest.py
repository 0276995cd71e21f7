"""The project in which the tests of the whole pipeline run DVC."""

import json
from pathlib import Path

import pytest

from tests.encoders import write_encoder
from tests.pipeline.project import Project, Result, copy_checkout, shrink, take_pictures


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project whose own code is sure to run; nothing has been reproduced in it yet."""
    pictures = tmp_path_factory.mktemp("pictures")
    take_pictures(pictures)
    encoder = write_encoder(tmp_path_factory.mktemp("encoder"))
    project = Project(tmp_path_factory.mktemp("project"))
    copy_checkout(project)
    project.write_params(shrink(project.params, pictures, encoder))
    used = project.command("python", "-c", "import extract; print(extract.__file__)").text.strip()
    assert Path(used) == project.root / "extract" / "__init__.py"
    return project


@pytest.fixture(scope="session")
def killed(project: Project) -> int:
    """The first `dvc repro`, killed in the middle of `regions@demo`; gives the number of finished pictures (of 80)."""
    sidecars = "cache/regions/*/*/*.json"
    project.kill_when(sidecars, count=2)
    return sum(json.loads(path.read_text())["count"] for path in project.root.glob(sidecars))


@pytest.fixture(scope="session")
def repeated(project: Project, killed: int) -> Result:
    """What the next `dvc repro`, which makes all the rest, printed."""
    assert not (project.root / "data/demo/regions").exists()
    return project.repro()
