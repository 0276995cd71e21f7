"""Tar archives of the tests."""

import tarfile
from pathlib import Path


def extract_all(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack an archive that lies in the repository; Pythons before 3.11.4 know no filter."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(folder, **safe)
