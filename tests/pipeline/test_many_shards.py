"""A store of a thousand shards, where a process may have 256 files open and where the disk has no locks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.no_locks import without_locks
from tests.pipeline.project import CHECKOUT

pytestmark = pytest.mark.slow


def run(folder: Path, shards: int, limit: str, environment: dict[str, str] | None = None) -> None:
    work = f"{limit}; exec {sys.executable} -m tests.pipeline.many_shards {folder} {shards}"
    done = subprocess.run(
        ["bash", "-c", work], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_works_on_a_thousand_shards_with_256_files_open(tmp_path: Path) -> None:
    run(tmp_path / "many", 1000, "ulimit -n 256")


def test_everything_works_on_a_disk_without_locks(tmp_path: Path) -> None:
    run(tmp_path / "few", 40, "true", without_locks(tmp_path))
