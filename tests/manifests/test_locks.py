"""One writer an artifact: the others wait, name it, and take its result; dead writers are in nobody's way."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manifests.errors import InputError
from manifests.locks import one_writer, sole_writer
from tests.no_locks import without_locks

CHECKOUT = Path(__file__).parents[2]
WAIT = 60  # seconds that no process here may take
WRITER = """
import sys, time
from pathlib import Path
from manifests import locks
from manifests.files import whole_folder

locks.LEASE = 3.0
out, key, text = Path(sys.argv[1]), sys.argv[2] or None, sys.argv[3]
with locks.sole_writer(out, "writing of out", key, staging=out.parent / "staging") as made:
    print("made" if made else "alone", flush=True)
    if not made:
        sys.stdin.read()
        with whole_folder(out) as folder:
            (folder / "text").write_text(text)
"""


@pytest.fixture(params=["locks", "no locks"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    return dict(os.environ) if request.param == "locks" else without_locks(tmp_path)


class Writer:
    """A process that says when it has the lock, and writes on command."""

    def __init__(self, environment: dict[str, str], out: Path, key: str = "key", text: str = "ours"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(out), key, text],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        return self.process.stdout.readline().strip()

    def dies(self) -> None:
        self.process.kill()
        self.process.wait()

    def ends(self) -> int:
        self.process.communicate(timeout=WAIT)
        return self.process.returncode


@pytest.fixture
def writers(environment: dict[str, str], tmp_path: Path) -> Iterator[list[Writer]]:
    """Two writers of the same; the second waits for the first."""
    out = tmp_path / "data" / "out"
    first = Writer(environment, out)
    assert first.says() == "alone"
    second = Writer(environment, out)
    assert f"another writing of out is running: process {first.process.pid} on " in second.says()
    yield [first, second]
    for writer in (first, second):
        writer.process.kill()
        writer.process.communicate()


def test_who_waited_takes_what_was_made(writers: list[Writer], tmp_path: Path) -> None:
    first, second = writers
    assert first.ends() == 0
    assert "is made already" in second.says() and second.says() == "made" and second.ends() == 0
    assert (tmp_path / "data" / "out" / "text").read_text() == "ours"
    left = {path.name for path in (tmp_path / "data").iterdir()}
    assert left == {"out", ".out.made.json"}


def test_who_waited_for_a_dead_one_writes_itself(writers: list[Writer], tmp_path: Path) -> None:
    first, second = writers
    first.dies()
    assert second.says() == "alone" and second.ends() == 0
    assert (tmp_path / "data" / "out" / "text").read_text() == "ours"


def test_who_waited_for_something_else_writes_itself(environment: dict[str, str], tmp_path: Path) -> None:
    first = Writer(environment, tmp_path / "out", key="another", text="another")
    assert first.says() == "alone"
    second = Writer(environment, tmp_path / "out")
    assert "is running" in second.says()
    assert first.ends() == 0 and second.says() == "alone" and second.ends() == 0
    assert (tmp_path / "out" / "text").read_text() == "ours"


def test_who_waited_for_what_was_cut_since_writes_itself(environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Writer(environment, out).ends() == 0
    (out / "text").write_text("cut")
    first = Writer(environment, out, key="")
    assert first.says() == "alone"
    second = Writer(environment, out)
    assert "is running" in second.says()
    first.dies()
    assert second.says() == "alone" and second.ends() == 0
    assert (out / "text").read_text() == "ours"


def test_a_writer_that_does_not_wait_names_the_other(tmp_path: Path) -> None:
    first = Writer(dict(os.environ), tmp_path / "out")
    assert first.says() == "alone"
    message = rf"another training is running: process {first.process.pid} on .*wait until it has ended"
    with pytest.raises(InputError, match=message), sole_writer(tmp_path / "out", "training", wait=False):
        pass
    assert first.ends() == 0


def test_a_folder_that_was_made_for_the_lock_alone_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), sole_writer(tmp_path / "a" / "b" / "out", "writing"):
        raise KeyError
    assert not (tmp_path / "a").exists()


def test_two_threads_are_two_writers(tmp_path: Path) -> None:
    inside, most = [], []

    @one_writer("counting")
    def run(*, out: Path) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run, out=tmp_path / "out") for _ in range(6)]:
            done.result()
    assert most == [1] * 6


def test_an_artifact_of_the_same_key_is_made_once_as_long_as_no_file_was_touched(tmp_path: Path) -> None:
    out, beside, made = tmp_path / "out", tmp_path / "figures.json", []

    @one_writer("artifact", lambda number, **places: number, beside=lambda **arguments: [beside])
    def run(*, out: Path, number: int) -> None:
        made.append(number)
        shutil.rmtree(out, ignore_errors=True)
        (out / "parts").mkdir(parents=True)
        (out / "parts" / "a").write_text(f"{number}")
        beside.write_text("{}")

    def runs(number: int = 1) -> bool:
        before = len(made)
        run(out=out, number=number)
        return len(made) > before

    assert runs() and not runs()
    assert runs(2) and runs(1) and not runs()
    (out / "parts" / "a").write_text("9")  # of the same size
    assert runs() and not runs()
    (out / "added").write_text("")
    assert runs() and not (out / "added").exists() and not runs()
    beside.write_text("[]")
    assert runs() and not runs()
    beside.unlink()
    assert runs() and not runs()
