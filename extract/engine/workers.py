"""Shards made on the workers of a Dask cluster (docs/extraction.md).

A worker gets the maker's settings once. A task is the rows of a shard, with their cached results. Workers write shards
themselves, into a folder that all machines share. So a worker that dies costs the shard that it was making, and a
scheduler that dies costs one shard a worker.
"""

import fcntl
import itertools
import os
import platform
import tempfile
import threading
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from distributed import Client, Worker, WorkerPlugin, as_completed, get_worker
from tqdm import tqdm

from extract.engine.cache import Cache, Place
from extract.engine.maker import Made, Maker, ShardJob, Workers
from manifests.errors import InputError
from manifests.files import fingerprint

RETRIES = 2  # of an error that is not the user's; Dask itself tries again, elsewhere, when a worker dies
_AHEAD = 2  # shards a thread of the cluster that were handed out: no worker waits, and few rows are in memory


def on_workers(
    workers: Workers, job: ShardJob, tasks: Iterable[tuple[int, tuple[Any, Mapping[str, Place]]]]
) -> Generator[tuple[int, Made | Exception], None, None]:
    """Have shards (number, (part, known results)) made; yield each number with its result, as they end.

    An exception stands for a shard that failed for good. No other shard is touched by it. Raises `InputError` where the
    scheduler is lost.
    """
    client, maker = workers.client, job.maker
    versions = maker.finished.versions if isinstance(maker.finished, Cache) else None
    device = workers.device if job.on_device else None
    plugin = ShardWorker(job.load, job.work, maker.key, versions, device, workers.threads)
    # The run that goes on after a killed one replaces its plugin.
    name = f"selfalign-{fingerprint(maker.key)[:16]}"
    group = f"{job.what.partition(':')[0].replace(' ', '-')}-{uuid4().hex}"
    try:
        client.register_plugin(plugin, name=name)
    except OSError as error:
        raise _lost(client) from error
    except Exception as error:  # Dask gives an ImportError on a worker no type of its own
        raise InputError(
            f"a worker can't load the code that makes shards ({error})",
            where=client.scheduler.address,
            fix="start the workers in an environment in which this project is installed",
        ) from error
    running, numbers, waiting = as_completed(), {}, iter(tasks)

    def hand_out() -> None:
        most = _AHEAD * max(1, sum(client.ncores().values()))
        for number, (part, known) in itertools.islice(waiting, max(0, most - len(numbers))):
            future = client.submit(_make, part, known, name, key=(group, number), retries=RETRIES)
            numbers[future] = number
            running.add(future)

    try:
        if not client.ncores():
            tqdm.write("no worker has joined the cluster yet: waiting for one")
        hand_out()
        for future in running:
            if future.cancelled():
                raise _lost(client)
            yield numbers.pop(future), future.exception() or future.result()
            hand_out()
    except (CancelledError, OSError) as error:
        raise _lost(client) from error
    finally:
        with suppress(OSError):  # of a scheduler that is lost
            if client.status == "running":
                client.cancel(list(numbers))
                client.unregister_worker_plugin(name)


def _lost(client: Client) -> InputError:
    return InputError(
        "the connection to the scheduler is lost",
        where=client.scheduler.address if client.scheduler else "Dask cluster",
        fix="run the stage again: finished shards are kept",
    )


def _make(part: Any, known: Mapping[str, Place], plugin: str) -> Made | InputError:
    return get_worker().plugins[plugin].make(part, known)


class ShardWorker(WorkerPlugin):
    """Keeps one maker in a worker, and makes one shard at a time with it.

    Parameters
    ----------
    load, work : ``load(**work, device=...)`` is the maker; relative paths start from this process's folder. Without a
        `device` none is passed, and torch isn't loaded.
    key : ``Maker.key`` of the caller; a worker that comes to another refuses.
    versions : of the cache's results, the ones to use.
    device, threads : as in `Workers`.
    """

    def __init__(
        self,
        load: Callable[..., Maker],
        work: Mapping[str, Any],
        key: Mapping[str, Any],
        versions: list[str] | None,
        device: str | None,
        threads: int | None,
    ):
        self.load, self.work, self.key, self.versions = load, work, key, versions
        self.device, self.threads = device, threads
        self.folder = Path.cwd()

    def setup(self, worker: Worker) -> None:
        self.threads = self.threads or worker.state.nthreads
        self.one_at_a_time = threading.Lock()
        self.maker: Maker | None = None
        self.slot: IO[bytes] | None = None

    def teardown(self, worker: Worker) -> None:
        self.maker = None
        if self.slot:
            self.slot.close()

    def make(self, part: Any, known: Mapping[str, Place]) -> Made | InputError:
        """Make a shard. The user's mistakes are returned, not raised: trying again would not mend them."""
        with self.one_at_a_time:
            try:
                if self.maker is None:
                    self.maker = self._load()
                return self.maker.make(part, known)
            except InputError as error:
                return error

    def _load(self) -> Maker:
        """The maker, on the first shard; the worker stays responsive meanwhile."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise InputError(
                f"a worker on {platform.node()} can't enter it ({error.strerror})",
                where=self.folder,
                fix="start the workers on machines that see the same files under the same paths",
            ) from error
        maker = self.load(**self.work, **({"device": self._device(self.device)} if self.device else {}))
        differing = [name for name, value in self.key.items() if maker.key[name] != value]
        if differing:
            raise InputError(
                f"a worker on {platform.node()} would make other shards: its {' and '.join(differing)} differ",
                where=self.folder,
                fix="start the workers again, in the environment that this command runs in",
            )
        if self.versions is not None:
            maker.finished.versions = self.versions
        return maker

    def _device(self, requested: str) -> str:
        import torch

        from extract.engine.device import torch_device

        torch.set_num_threads(self.threads)
        device, count = torch_device(requested), torch.cuda.device_count()
        if device != "cuda" or count < 2:
            return device
        if self.slot is None:
            self.number, self.slot = claim_slot(Path(tempfile.gettempdir()))
        return f"cuda:{self.number % count}"


def claim_slot(folder: Path) -> tuple[int, IO[bytes]]:
    """The lowest number that no other process of this user holds, and the open file that holds it until it is closed.

    Workers of one machine that lock files in one folder count themselves this way, whatever started them.
    """
    for number in itertools.count():
        file = open(folder / f"selfalign-{os.getuid()}-worker-{number}.lock", "wb")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return number, file
        except BlockingIOError:
            file.close()
