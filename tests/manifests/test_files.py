import errno
import hashlib
import os
import platform
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests import files
from manifests.errors import InputError


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 35])
def test_a_fingerprint_is_of_all_blocks_of_a_file_in_order(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_BLOCK", 10)
    data, path, advanced = os.urandom(size), tmp_path / "file", []
    path.write_bytes(data)
    assert files.sha256(path, advanced.append) == hashlib.sha256(data).hexdigest()
    assert sum(advanced) == size


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


# -- Folders are replaced without loss ---------------------------------------------------------------------------------

STEPS = ("replace", "fsync", "mkdir", "open")  # of the system's calls that replacing a folder makes


def store(folder: Path, text: str) -> None:
    with files.whole_folder(folder) as ready:
        (ready / "part").mkdir()
        (ready / "part" / "one").write_text(text)
        (ready / "two").write_text(text)


def held(folder: Path) -> set[str]:
    """What is in a folder: the texts of all its files, which are two where it is whole."""
    found = [path.read_text() for path in (folder / "part" / "one", folder / "two") if path.exists()]
    assert len(found) == 2 and len(set(found)) == 1, f"{folder} is not whole: {found}"
    return set(found)


class Broken:
    """Counts calls of some functions of `os`, and does something in the place of the `number`th."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, breaks: Callable[[], None], more: int = 0):
        self.calls = 0
        for name in STEPS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), number, breaks, more))

    def _counted(self, plain: Callable, number: int, breaks: Callable[[], None], more: int) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            self.calls += 1
            if number <= self.calls <= number + more:
                breaks()
            return plain(*arguments, **options)

        return call


def no_input_output() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def count_steps(tmp_path: Path) -> int:
    """How many calls it takes to replace a folder."""
    store(tmp_path / "counted", "earlier")
    with pytest.MonkeyPatch.context() as patch:
        broken = Broken(patch, -1, no_input_output)
        store(tmp_path / "counted", "later")
    return broken.calls


@pytest.mark.parametrize("more", [0, 1, 99], ids=["once", "and its repair", "from then on"])
def test_whatever_step_of_replacing_a_folder_fails_the_earlier_one_is_there(tmp_path: Path, more: int) -> None:
    steps = count_steps(tmp_path)
    assert steps >= 10
    warned = 0
    for number in range(1, steps + 1):
        out = tmp_path / f"{number}" / "out"
        store(out, "earlier")
        with pytest.MonkeyPatch.context() as patch:
            Broken(patch, number, no_input_output, more)
            try:
                store(out, "later")
                error = None
            except (OSError, InputError) as raised:
                error = raised
        if error is None:
            assert held(out) == {"later"}  # only removing the earlier one failed
        elif not (out.exists() and held(out) == {"earlier"}):
            (kept,) = out.parent.glob(".out.*.old")
            assert held(kept) == {"earlier"} and f"whole, in {kept}" in str(error)
            warned += 1
        store(out, "after")
        assert held(out) == {"after"} and [path.name for path in out.parent.iterdir()] == ["out"]
    assert warned >= (2 if more else 1)


def test_a_kill_at_any_step_of_replacing_a_folder_loses_nothing(tmp_path: Path) -> None:
    steps, between = count_steps(tmp_path), 0
    for number in range(1, steps + 1):
        out = tmp_path / f"{number}" / "out"
        store(out, "earlier")
        if (child := os.fork()) == 0:
            Broken(pytest.MonkeyPatch(), number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            try:
                store(out, "later")
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        there = out if out.exists() else next(out.parent.glob(".out.*.old"))
        between += there != out
        assert held(there) <= {"earlier", "later"}
        with pytest.raises(KeyboardInterrupt), files.whole_folder(out):
            raise KeyboardInterrupt  # the next writer puts the earlier one back before it begins
        assert held(out) <= {"earlier", "later"} and [path.name for path in out.parent.iterdir()] == ["out"]
    assert between == 1


def test_what_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    host, ours = platform.node(), os.getppid()
    others = [tmp_path / name for name in (f".out.{host}.{ours}.tmp", ".out.elsewhere.99.old", f".outer.{host}.7.tmp")]
    for other in others:
        other.mkdir()
    dead = tmp_path / f".out.{host}.{2**22 + 1}.tmp"
    dead.mkdir()
    store(tmp_path / "out", "ours")
    assert all(other.exists() for other in others) and not dead.exists()


def test_a_file_is_not_written_into_a_folder_that_was_given_up(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="the folder was removed"),
        files.atomic(tmp_path / "gone" / "file", make_folder=False) as path,
    ):
        path.write_text("x")
    assert not (tmp_path / "gone").exists()
