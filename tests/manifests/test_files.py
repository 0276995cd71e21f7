import hashlib
import os
import threading
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


@pytest.mark.parametrize("size", [4, 35])
def test_an_error_while_a_file_is_hashed_leaves_no_thread(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 10)
    path, threads = tmp_path / "file", threading.active_count()
    path.write_bytes(bytes(size))

    def advance(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        files.sha256(path, advance)
    assert threading.active_count() == threads and caught.traceback  # which keeps what was running alive
