"""Extraction on a real Dask cluster: the bytes of a serial run, whoever dies and however full the disk is."""

import errno
import importlib.util
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from distributed import Client

from extract.check import verify
from extract.engine.maker import ShardJob, Workers
from extract.engine.workers import on_workers
from extract.vision.shards import RegionShards
from manifests.errors import DiskFull, InputError
from manifests.files import sha256
from manifests.tables import Manifest
from pipeline import cluster, places
from pipeline.cli import main
from pipeline.cluster import open_workers, worker_threads
from pipeline.machine import Machine
from tests.extract.disks import mounted
from tests.extract.held import hold, holding
from tests.extract.region_files import WEIGHTS, Pictures, cached, contents, quick_settings, scene_files, write_pictures
from tests.pipeline.project import CHECKOUT, Project

SHARDS, PER_SHARD = 8, 4
SETTINGS = quick_settings(images_per_shard=PER_SHARD)
WAIT = 90  # seconds that nothing here may take

pytestmark = pytest.mark.timeout(150)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers of one thread on this machine."""
    with open_workers(Machine(cluster="local:2", threads=1)) as workers:
        assert workers is not None
        yield workers.client


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that a serial run on one thread makes of `pictures`."""
    return contents(write_pictures(tmp_path_factory.mktemp("serial") / "p", scene_files(32)).extract(SETTINGS))


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    """32 pictures: eight shards."""
    return write_pictures(tmp_path / "p", scene_files(32))


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finished(cache: Path) -> dict[str, tuple[int, int]]:
    """The finished shards of a cache, by their name in the store, with what changes when one is made again."""
    shards = {name: path.stat() for name, path in cached(cache, PER_SHARD).items()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in shards.items()}


def kept(before: dict[str, tuple[int, int]], out: Path) -> bool:
    """Whether the shards of `before` are in the store `out`, not made again."""
    return all(((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) == seen for name, seen in before.items())


class Stuck:
    """A picture at which its reader waits, and so is in the middle of a shard, until it is released.

    Processes with `picture` and `pipe` wait there (`tests.extract.held`).
    """

    def __init__(self, picture: Path):
        self.picture, self.pipe = picture, picture.parent.parent / "pipe"
        os.mkfifo(self.pipe)
        self.end: int | None = None

    def path(self, folder: Path) -> str:
        """PYTHONPATH of new processes that are to wait."""
        return f"{holding(folder, self.picture, self.pipe)}:{CHECKOUT}"

    def reader(self) -> int:
        """The process that waits."""
        until(self._is_open)
        until(self._readers)
        return self._readers()[0]

    def _is_open(self) -> bool:
        try:
            self.end = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO
            return False
        return True

    def _readers(self) -> list[int]:
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_held_by(pid)]

    def _is_held_by(self, pid: int) -> bool:
        try:
            files = [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            return False
        return pid != os.getpid() and str(self.pipe) in files

    def put_back(self) -> None:
        """Whoever reads the picture from now on gets it; the waiting reader waits on."""
        self.pipe.unlink()

    def let_go(self) -> None:
        if self.end is not None:
            os.close(self.end)
            self.end = None


def test_one_setting_names_the_cluster_and_its_threads() -> None:
    with open_workers(Machine()) as nobody:
        assert nobody is None
    assert worker_threads(Machine(cluster="local:2", threads=3)) == 3
    cores = os.cpu_count() or 1
    assert worker_threads(Machine(cluster="local:2")) == max(1, cores // 2)
    assert worker_threads(Machine(cluster="local:1000")) == 1
    assert worker_threads(Machine(cluster="tcp://node:8786")) is None
    assert worker_threads(Machine(cluster="tcp://node:8786", threads=8)) == 8


def test_a_scheduler_that_is_not_there_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    start = time.monotonic()
    message = "SELFALIGN_CLUSTER=tcp://127.0.0.1:9: no Dask scheduler answers.*dask scheduler"
    with pytest.raises(InputError, match=message), open_workers(Machine(cluster="tcp://127.0.0.1:9")):
        pass
    assert time.monotonic() - start < 10


def test_slurm_without_its_package_says_what_to_install() -> None:
    if importlib.util.find_spec("dask_jobqueue"):
        pytest.skip("dask-jobqueue is installed")
    message = "dask-jobqueue isn't installed.*pip install"
    with pytest.raises(InputError, match=message), open_workers(Machine(cluster="slurm")):
        pass


def test_errors_arrive_from_another_process_as_they_are() -> None:
    for kind in (InputError, DiskFull):
        error = kind("no such picture", where=Path("a.png"), fix="restore it")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and str(again) == str(error)
        assert (again.what, again.where, again.fix) == ("no such picture", "a.png", "restore it")


def test_a_killed_worker_costs_the_shard_that_it_was_making(
    client: Client, pictures: Pictures, serial: dict[str, bytes]
) -> None:
    stuck = Stuck(pictures.images / "009.png")  # in the middle of the third shard
    client.run(hold, str(stuck.picture), str(stuck.pipe))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(pictures.extract, SETTINGS, workers=Workers(client, "auto", 1))
        try:
            reader = stuck.reader()
            assert reader in client.run(os.getpid).values()
            until(lambda: len(finished(pictures.cache)) == SHARDS - 1)
            before = finished(pictures.cache)
        finally:
            stuck.put_back()
            os.kill(reader, signal.SIGKILL)
            stuck.let_go()
        assert contents(running.result(WAIT)) == serial
    assert kept(before, pictures.out)
    assert verify.run(store=pictures.out, manifest=pictures.manifest).total == 0


def test_failed_shards_are_listed_and_all_others_staged(
    client: Client, pictures: Pictures, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = (pictures.images / "005.png").rename(pictures.folder / "moved.png")
    with pytest.raises(InputError, match="can't be opened") as here:
        pictures.extract(SETTINGS, cache=pictures.folder / "other")
    with pytest.raises(InputError) as there:
        pictures.extract(SETTINGS, workers=Workers(client, "auto", 2))
    assert str(there.value) == str(here.value)
    assert f"shard 000001 failed: {here.value}" in capfd.readouterr().out
    before = finished(pictures.cache)
    assert sorted(before) == [f"{i:06d}.h5" for i in range(SHARDS) if i != 1]
    shards = cached(pictures.cache, PER_SHARD)
    assert '"threads": 2' in shards["000000.h5"].with_suffix(".json").read_text()

    shards["000003.h5"].with_suffix(".json").unlink()
    shards["000003.h5"].unlink()
    shards["000003.h5"].mkdir()  # what no code of ours foresees
    with pytest.raises(InputError, match="2 of 8 shards failed .listed above., the others are kept"):
        pictures.extract(SETTINGS, workers=Workers(client, "auto", 1))
    listed = capfd.readouterr().out
    assert "shard 000001 failed: " in listed and "shard 000003 failed: IsADirectoryError: " in listed
    assert not pictures.out.exists()

    missing.rename(pictures.images / "005.png")
    shards["000003.h5"].rmdir()
    pictures.extract(SETTINGS, workers=Workers(client, "auto", 1))
    del before["000003.h5"]
    assert kept(before, pictures.out)
    assert verify.run(store=pictures.out, manifest=pictures.manifest).total == 0
    made = json.loads((pictures.folder / "made.jsonl").read_text().splitlines()[-1])
    assert {each["threads"] for each in made["shards"]} == {1, 2}


def test_a_full_disk_is_an_error_and_the_next_run_completes(
    client: Client, pictures: Pictures, serial: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.engine.build._Build.require_room", lambda *_: None)  # somebody else fills it meanwhile
    with mounted(tmp_path / "disk") as disk:
        disk.resize("100k")  # of 230
        where = {"cache": disk.folder / "cache", "out": disk.folder / "regions"}
        with pytest.raises(DiskFull, match="No space left on device.*MB are free.*make room"):
            pictures.extract(SETTINGS, workers=Workers(client, "auto", 1), **where)
        until(lambda: not any(client.processing().values()))
        for name, shard in cached(where["cache"], PER_SHARD).items():
            assert shard.read_bytes() == serial[name]
        before = finished(where["cache"])
        assert 0 < len(before) < SHARDS and not where["out"].exists()
        disk.resize("2m")
        pictures.extract(SETTINGS, workers=Workers(client, "auto", 1), **where)
        out = where["out"] / "train"
        assert contents(out) == serial and kept(before, out)


def test_a_worker_with_other_code_or_pictures_refuses(client: Client, pictures: Pictures) -> None:
    work = {"images": pictures.images, "settings": SETTINGS}
    work |= {"cache": pictures.cache, "id_bytes": 10}
    work |= {"batch_size": 4, "readers": 1}
    maker, part = RegionShards(**work, device="cpu"), Manifest.open(pictures.manifest).images[:PER_SHARD]
    maker.key["code"] = "0" * 64
    job = ShardJob(maker, [part], "regions", "pictures", RegionShards, work)
    ((number, error),) = on_workers(Workers(client, "cpu", 1), job, [(3, (part, {}))])
    assert number == 3 and isinstance(error, InputError) and "its code differ" in error.what


# -- Schedulers that die -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project folder with the data set `tiny`, of which the manifest is made; the test runs in it."""
    project = Project(tmp_path / "project")
    project.root.mkdir()
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    tiny = params["datasets"]["demo"]
    tiny["source"] |= dict.fromkeys(("images", "watch"), str(pictures.images))
    tiny["regions"]["images_per_shard"] = PER_SHARD
    tiny["regions"]["detector"] |= {"weights": str(WEIGHTS), "sha256": sha256(WEIGHTS), "shortest": 64, "longest": 64}
    params["datasets"]["tiny"] = tiny
    project.write_params(params)
    manifest = project.root / places.manifest("tiny")
    shutil.copytree(pictures.manifest, manifest)
    project.environment |= {"PYTHONPATH": str(CHECKOUT), "SELFALIGN_CLUSTER": "local:2"}
    monkeypatch.chdir(project.root)
    for name in ("SELFALIGN_THREADS", "SELFALIGN_BATCH", "SELFALIGN_CACHE"):
        monkeypatch.setenv(name, project.environment[name])
    return project


def regions_serially() -> dict[str, bytes]:
    """The files of the store that `selfalign regions tiny` makes in this folder, without a cluster."""
    answer = CliRunner().invoke(main, ["regions", "tiny"])
    assert answer.exit_code == 0, answer.output
    return contents(places.regions("tiny") / "train")


def test_a_killed_scheduler_and_then_a_failed_shard(
    folder: Project, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, cache = folder.root / places.regions("tiny"), folder.root / "cache"
    stuck = Stuck(pictures.images / "021.png")
    path = stuck.path(folder.root / "site")
    with open(folder.root / "log", "wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "regions", "tiny"],
            cwd=folder.root,
            env=folder.environment | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            reader = stuck.reader()
            until(lambda: len(finished(cache)) == SHARDS - 1)
            assert run.poll() is None and reader != run.pid
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            stuck.let_go()
            stuck.put_back()
    until(lambda: not Path(f"/proc/{reader}").exists())
    assert "dashboard: http://127.0.0.1:" in (folder.root / "log").read_text()
    before = finished(cache)
    assert not out.exists() and sorted(before) == [f"{i:06d}.h5" for i in range(SHARDS) if i != 5]

    moved = (pictures.images / "021.png").rename(pictures.folder / "moved.png")
    for name in ("000001", "000002"):  # something to be done beside the shard that fails
        cached(cache, PER_SHARD)[f"{name}.h5"].with_suffix(".json").unlink()
        del before[f"{name}.h5"]
    monkeypatch.setenv("SELFALIGN_CLUSTER", "local:2")
    failed = CliRunner().invoke(main, ["regions", "tiny"])
    assert failed.exit_code == 1
    assert "shard 000005 failed: " in failed.stdout and f"error: {pictures.images / '021.png'}: " in failed.stderr
    again = finished(cache)
    assert set(again) == {f"{i:06d}.h5" for i in range(SHARDS)} - {"000005.h5"} and again.items() >= before.items()
    assert not out.exists()

    moved.rename(pictures.images / "021.png")
    monkeypatch.delenv("SELFALIGN_CLUSTER")
    completed = regions_serially()
    assert kept(again, out / "train")
    out.rename(folder.root / "earlier")
    monkeypatch.setenv("SELFALIGN_CACHE", str(folder.root / "another cache"))
    assert completed == regions_serially()


def test_a_scheduler_elsewhere_may_die_too(pictures: Pictures, serial: dict[str, bytes], tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    stuck = Stuck(pictures.images / "021.png")
    environment = {**os.environ, "PYTHONPATH": stuck.path(tmp_path / "site")}
    about, log = elsewhere / "scheduler.json", elsewhere / "log"
    processes = []

    def start(*arguments: str) -> None:
        with open(log, "ab") as file:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(about)],
                    cwd=elsewhere,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            )

    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    start("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")
    try:
        until(lambda: about.exists() and about.read_text().endswith("}"))
        machine = Machine(cluster=yaml.safe_load(about.read_text())["address"])
        with open_workers(machine) as workers, ThreadPoolExecutor(1) as pool:
            running = pool.submit(pictures.extract, SETTINGS, workers=workers)
            assert stuck.reader() == processes[1].pid, log.read_text()
            processes[0].kill()
            with pytest.raises(InputError, match="the connection to the scheduler is lost.*finished shards are kept"):
                running.result(30)
        assert not pictures.out.exists() and finished(pictures.cache)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    stuck.put_back()
    stuck.let_go()
    before = finished(pictures.cache)
    assert contents(pictures.extract(SETTINGS)) == serial and kept(before, pictures.out)
