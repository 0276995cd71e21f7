"""`selfalign clean`: unfinished work is listed, and removed on request; work in use stays."""

import os
import platform
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from extract.engine.build import building
from extract.engine.finished import Staging
from extract.engine.maker import Maker, ShardJob
from pipeline.cli import main


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SELFALIGN_STAGING", raising=False)


def clean(*options: str) -> str:
    result = CliRunner().invoke(main, ["clean", *options])
    assert result.exit_code == 0, result.output
    return result.output


class Unfinished(Maker[list[str]]):
    """Makes shards of some bytes."""

    key = {}

    def __init__(self, finished: Staging, data: bytes):
        self.finished, self.data = finished, data

    def content(self, part: list[str]) -> list[str]:
        return part

    def write(self, path: Path, part: list[str], known: object, advance: object) -> tuple[dict, int]:
        path.write_bytes(self.data)
        return {}, len(part)


def unfinished(name: str, size: int) -> Path:
    """The staging folder of an extraction that was interrupted."""
    job = ShardJob(Unfinished(Staging(Path(".staging"), name), bytes(size)), [["a picture"]], "regions", "pictures")
    with (
        pytest.raises(KeyboardInterrupt),
        building(Path("data") / name / "regions", f"extraction of {name}", name, [job], title=f"regions {name}"),
    ):
        raise KeyboardInterrupt
    return job.maker.finished.folder


def test_unfinished_work_is_listed_and_freed_on_request() -> None:
    assert clean() == "nothing to clean\n"
    coco, flickr = unfinished("coco", 3_000_000), unfinished("flickr", 1_000_000)
    run = Path(".staging/train-vsrn-a-0123456789abcdef")
    run.mkdir()
    dead = Path(f"data/coco/.regions.{platform.node()}.{2**22 + 1}.tmp")
    alive = Path(f"data/coco/.regions.{platform.node()}.{os.getppid()}.tmp")
    for folder in (dead, alive):
        folder.mkdir(parents=True)
    listed = clean().splitlines()
    assert [line.split("  (")[-1] for line in listed[:2]] == ["extraction of coco)", "extraction of flickr)"]
    assert "3.0 MB" in listed[0] and str(coco) in listed[0]
    assert any(line.endswith("(training of vsrn-a)") for line in listed)
    assert any(str(dead) in line for line in listed) and not any(str(alive) in line for line in listed)
    assert "4.0 MB in all; `selfalign clean --yes` removes it" in listed[-1]
    assert all(path.exists() for path in (coco, flickr, run, dead))
    for path in (*flickr.iterdir(), flickr):
        os.utime(path, (0, 0))
    assert "flickr" in clean("--days", "30") and "coco" not in clean("--days", "30")
    assert clean("--yes").endswith("4.0 MB freed\n")
    assert not any(path.exists() for path in (coco, flickr, run, dead)) and alive.exists()
    assert [path for path in Path(".staging").iterdir()] == []


def test_what_is_in_use_stays() -> None:
    staged, entered, end = Staging(Path(".staging"), "coco"), threading.Event(), threading.Event()
    job = ShardJob(Unfinished(staged, b"half"), [["a picture"]], "regions", "pictures")

    def work() -> None:
        with building(Path("data/coco/regions"), "extraction of coco", "coco", [job], title="regions coco"):
            entered.set()
            end.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(60)
    try:
        output = clean("--yes")
        assert staged.folder.exists()
    finally:
        end.set()
        thread.join()
    assert f"kept: another work there is running: process {os.getpid()} on" in output and "0.0 MB freed" in output
