import hashlib
import os
from pathlib import Path

import pytest

from manifests import files


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 35])
def test_a_fingerprint_is_of_all_blocks_of_a_file_in_order(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 10)
    data, path, told = os.urandom(size), tmp_path / "file", []
    path.write_bytes(data)
    assert files.sha256(path, told.append) == hashlib.sha256(data).hexdigest()
    assert sum(told) == size


def test_an_error_while_a_file_is_hashed_reaches_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"some")

    def advance(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.sha256(path, advance)
