"""Kills at random moments and full disks: what stands under a final name is whole, and the next run completes."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from extract.check import verify
from extract.engine.workers import claim_slot
from extract.stores.hdf5 import write_hdf5
from manifests.errors import DiskFull, InputError
from manifests.files import sha256, write_text
from tests.extract.disks import Disk
from tests.extract.region_files import Pictures, cached, contents, quick_settings, scene_files, write_pictures

SHARDS, KILLS = 48, 20
PER_SHARD = 4
SETTINGS = quick_settings(images_per_shard=PER_SHARD)
WAIT = 120  # seconds that no process here may take

# Processes forked from a server that has imported torch start at once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["extract.stages.regions", "tests.extract.region_files"])


def alone(pictures: Pictures, places: dict[str, Path]) -> None:
    """What a process does: extract, on one thread, quietly; its exit status is 1 for an `InputError`."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        pictures.extract(SETTINGS, **places)
    except InputError:
        os._exit(1)


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = FORKS.Process(target=work, args=arguments)
    process.start()
    return process


def finish(process: BaseProcess) -> int | None:
    """The exit status of a process; it is killed if it takes too long."""
    process.join(WAIT)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """192 pictures, made of 16 scenes under different names, and the store of an uninterrupted run."""
    files = list(scene_files(16).values())
    named = {f"{i:03d}.png": files[i * 5 % 16] for i in range(SHARDS * PER_SHARD)}
    pictures = write_pictures(tmp_path_factory.mktemp("many"), named)
    assert finish(start(alone, pictures, {})) == 0
    return pictures


class Observer:
    """Looks at a cache after a kill, and remembers which shards were finished."""

    def __init__(self, cache: Path, expected: dict[str, bytes]):
        self.cache, self.expected = cache, expected
        self.finished: dict[str, tuple[int, int]] = {}

    def markers(self) -> int:
        return len(list(self.cache.glob("regions/*/*/*.json")))

    def observe(self) -> None:
        for name, shard in cached(self.cache, PER_SHARD).items():
            assert shard.read_bytes() == self.expected[name], f"{name} is not whole"
            assert json.loads(shard.with_suffix(".json").read_text())["sha256"] == sha256(shard)
            with h5py.File(shard) as file:
                assert len(file["image_id"]) == PER_SHARD
            seen = (shard.stat().st_ino, shard.stat().st_mtime_ns)
            assert self.finished.setdefault(name, seen) == seen, f"{name} was made again"


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_twenty_kills_at_random_moments_change_nothing(many: Pictures, tmp_path: Path) -> None:
    expected = contents(many.out)
    places = {"out": tmp_path / "regions", "cache": tmp_path / "cache"}
    observer = Observer(places["cache"], expected)
    rng = random.Random(20)
    longest = 1.0  # seconds; adapted so that attempts get as far as one to four new shards
    reached = []
    for _ in range(KILLS):
        before, after, shards = observer.markers(), rng.uniform(0, longest), rng.choice((1, 1, 2, 2, 3))
        process, began = start(alone, many, places), time.monotonic()
        while process.is_alive() and observer.markers() - before < shards and time.monotonic() - began < after:
            time.sleep(0.001)
        # Not always at a marker: a part of the time of a shard later.
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        status = finish(process)
        if status == 0:  # a busy machine woke this test too late: the run had ended
            break
        assert status == -signal.SIGKILL
        observer.observe()
        assert not places["out"].exists()
        reached.append(observer.markers() - before)
        longest *= 1.5 if reached[-1] == 0 else 0.9
        if observer.markers() > SHARDS - 6:  # the next run could end by itself
            break
    assert sum(made > 0 for made in reached) >= 5 and len(observer.finished) < SHARDS
    assert finish(start(alone, many, places)) == 0
    assert contents(places["out"] / "train") == expected
    for name, seen in observer.finished.items():
        shard = (places["out"] / "train" / name).stat()
        assert (shard.st_ino, shard.st_mtime_ns) == seen
    assert verify.run(store=places["out"] / "train", manifest=many.manifest).total == 0


# -- Full disks --------------------------------------------------------------------------------------------------------


WHOLE, ABSENT = 10, 11  # exit statuses that nothing else gives


def fill_and_write(folder: Path, free: int, sizes: tuple[int, ...]) -> None:
    """Leave `free` bytes, then write arrays of these `sizes`; the process ends with what came of it."""
    arrays = {f"array{i}": np.full(size, i, np.uint8) for i, size in enumerate(sizes)}
    room = os.statvfs(folder).f_bavail * 4096
    (folder / "filling").write_bytes(bytes(max(0, room - free)))
    try:
        write_hdf5(folder / "shard.h5", arrays, {"schema": 1})
    except DiskFull as error:
        assert "No space left" in error.what and error.where == str(folder / "shard.h5")
        assert sorted(path.name for path in folder.iterdir()) == ["filling"]
        os._exit(ABSENT)
    with h5py.File(folder / "shard.h5") as file:
        assert all((file[name][()] == array).all() for name, array in arrays.items())
    os._exit(WHOLE)


LARGE, SMALL = (150_000, 9_000, 9_000, 100, 100), (100,) * 12  # about 170 kB, 6 kB


@pytest.mark.parametrize(
    ("sizes", "free", "status"),
    [(LARGE, 1024 * kilobytes, ABSENT) for kilobytes in (0, 4, 40, 152, 160, 164)]
    + [(SMALL, 1024 * kilobytes, ABSENT) for kilobytes in (0, 4)]
    + [(LARGE, 1024 * 192, WHOLE), (SMALL, 1024 * 12, WHOLE)],
)
def test_a_shard_on_a_disk_with_little_room_is_whole_or_absent(
    disk: Disk, sizes: tuple[int, ...], free: int, status: int
) -> None:
    assert finish(start(fill_and_write, disk.folder, free, sizes)) == status


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_computed(many: Pictures, disk: Disk) -> None:
    disk.resize("500k")  # of 1.3 MB
    with pytest.raises(DiskFull, match=r"may need 0\.00 GB, 0\.00 GB are free.*SELFALIGN_CACHE"):
        many.extract(SETTINGS, out=disk.folder / "regions", cache=disk.folder / "cache")
    assert not list(disk.folder.rglob("*.h5"))


def test_a_disk_that_fills_is_an_error_and_the_next_run_completes(
    many: Pictures, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.engine.build._Build.require_room", lambda *_: None)  # somebody else fills it meanwhile
    places = {"out": disk.folder / "regions", "cache": disk.folder / "cache"}
    expected = contents(many.out)
    disk.resize("500k")  # of 1.3 MB
    observer = Observer(places["cache"], expected)
    with pytest.raises(DiskFull, match=r"No space left on device: without it, \d+\.\d MB are free.*make room") as error:
        many.extract(SETTINGS, **places)
    assert Path(error.value.where).is_relative_to(places["cache"])
    observer.observe()
    assert 0 < len(observer.finished) < SHARDS and not places["out"].exists()
    assert not list(places["cache"].glob("regions/*/*/.*"))
    disk.resize("8m")
    many.extract(SETTINGS, **places)
    assert contents(places["out"] / "train") == expected


def test_no_room_for_the_store_itself_keeps_the_shards(many: Pictures, disk: Disk, tmp_path: Path) -> None:
    places = {"out": disk.folder / "regions", "cache": tmp_path / "cache"}
    disk.resize("500k")
    with pytest.raises(DiskFull, match=str(places["out"])):
        many.extract(SETTINGS, **places)
    assert not list(disk.folder.iterdir())
    before = {name: path.stat().st_mtime_ns for name, path in cached(places["cache"], PER_SHARD).items()}
    assert len(before) == SHARDS
    disk.resize("8m")
    many.extract(SETTINGS, **places)
    assert contents(places["out"] / "train") == contents(many.out)
    assert {path.name: path.stat().st_mtime_ns for path in places["out"].glob("train/*.h5")} == before


def test_text_on_a_full_disk_keeps_what_was_there(disk: Disk) -> None:
    disk.resize("100k")
    write_text(disk.folder / "card", "earlier")
    with pytest.raises(DiskFull):
        write_text(disk.folder / "card", "x" * 200_000)
    assert (disk.folder / "card").read_text() == "earlier" and len(list(disk.folder.iterdir())) == 1


# -- Workers of one machine --------------------------------------------------------------------------------------------


def hold(folder: Path, number: Any) -> None:
    """Claim a slot, tell its number and keep it."""
    slot, _file = claim_slot(folder)
    number.value = slot
    time.sleep(WAIT)


def test_workers_of_one_machine_count_themselves(tmp_path: Path) -> None:
    numbers = [FORKS.Value("i", -1) for _ in range(4)]
    holders: list[BaseProcess] = []

    def claim(number: Any) -> int:
        holders.append(start(hold, tmp_path, number))
        deadline = time.monotonic() + WAIT
        while number.value < 0:
            assert time.monotonic() < deadline and holders[-1].is_alive()
            time.sleep(0.01)
        return number.value

    try:
        assert [claim(number) for number in numbers[:3]] == [0, 1, 2]
        holders[1].kill()
        holders[1].join()
        assert claim(numbers[3]) == 1
    finally:
        for process in holders:
            process.kill()
            process.join()
