"""A small disk of its own for tests that fill it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A file system in memory, mounted at `folder`."""

    folder: Path

    def resize(self, size: str) -> None:
        """Give it another size, as tmpfs takes it: "500k", "8m"."""
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True, timeout=20)


@contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    """A disk of 1 MB at `folder`; the test is skipped where mounting isn't allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, timeout=20, check=False)
    except FileNotFoundError:
        pytest.skip("needs a small tmpfs: there is no mount command")
    if done.returncode:
        pytest.skip(f"needs a small tmpfs: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True, timeout=20)
