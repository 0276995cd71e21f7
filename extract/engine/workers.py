"""Shards made on the workers of a Dask cluster (docs/extraction.md).

A worker is told once where everything lies and what the numbers depend on; a task is the number of a shard, with what
the cache has of it. Workers write shards themselves, into the cache that all machines share, so a worker that dies
costs the shard that it was making, and a scheduler that dies costs one shard a worker.
"""

import fcntl
import itertools
import os
import platform
import tempfile
import threading
import uuid
from asyncio import CancelledError
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from distributed import Client, Worker, WorkerPlugin, as_completed, get_worker
from tqdm import tqdm

from extract.engine.cache import Place
from extract.engine.device import torch_device
from extract.vision.shards import Made, Shards
from manifests.errors import InputError
from manifests.files import fingerprint

RETRIES = 2  # of an error that is not the user's; Dask itself tries again, elsewhere, when a worker dies


def on_workers(
    client: Client,
    shards: Shards,
    parts: Mapping[int, Mapping[str, Place]],
    work: Mapping[str, Any],
    *,
    device: str,
    threads: int | None,
) -> Generator[tuple[int, Made | Exception], None, None]:
    """Have the shards of `parts` (number -> known results) made; yield each with what came of it, as they end.

    An exception stands for a shard that failed for good. No other shard is touched by it.

    Parameters
    ----------
    shards : what the workers must agree with.
    work : the arguments of `Shards`, but for the device.
    device, threads : of each worker; threads None is as many as Dask knows the worker to have.

    Raises `InputError` where the scheduler is lost.
    """
    plugin = RegionWorker(work, shards.key, shards.cache.versions, device, threads)
    # The run that goes on after a killed one replaces its plugin.
    name = f"selfalign-regions-{fingerprint(shards.key)[:16]}"
    group = f"regions-{uuid.uuid4().hex}"
    try:
        client.register_plugin(plugin, name=name)
    except OSError as error:
        raise _lost(client) from error
    except Exception as error:  # Dask gives an ImportError on a worker no type of its own
        raise InputError(
            f"a worker can't load the detector's code ({error})",
            where=client.scheduler.address,
            fix="start the workers in an environment in which this project is installed",
        ) from error
    if not client.scheduler_info()["workers"]:
        tqdm.write("no worker has joined the cluster yet: waiting for one")
    futures = {
        client.submit(_make, number, dict(known), name, key=(group, number), retries=RETRIES): number
        for number, known in parts.items()
    }
    try:
        for future in as_completed(futures):
            if future.cancelled():
                raise _lost(client)
            yield futures[future], future.exception() or future.result()
    except (CancelledError, OSError) as error:
        raise _lost(client) from error
    finally:
        with suppress(OSError):  # of a scheduler that is lost
            if client.status == "running":
                client.cancel(list(futures))
                client.unregister_worker_plugin(name)


def _lost(client: Client) -> InputError:
    return InputError(
        "the connection to the scheduler is lost",
        where=client.scheduler.address if client.scheduler else "Dask cluster",
        fix="run the stage again: finished shards are kept",
    )


def _make(number: int, known: dict[str, Place], plugin: str) -> Made | InputError:
    return get_worker().plugins[plugin].make(number, known)


class RegionWorker(WorkerPlugin):
    """Keeps one detector in a worker, and makes one shard at a time with it.

    Parameters
    ----------
    work : the arguments of `Shards`, but for the device; relative paths start from this process's folder.
    key : ``Shards.key`` of the caller; a worker that comes to another refuses.
    versions : of the cache's results, the ones to use.
    device, threads : as in `on_workers`.
    """

    def __init__(
        self,
        work: Mapping[str, Any],
        key: Mapping[str, Any],
        versions: Sequence[str],
        device: str,
        threads: int | None,
    ):
        self.work, self.key, self.versions, self.device, self.threads = work, key, list(versions), device, threads
        self.folder = Path.cwd()

    def setup(self, worker: Worker) -> None:
        self.threads = self.threads or worker.state.nthreads
        self.one_at_a_time = threading.Lock()
        self.shards: Shards | None = None
        self.slot: IO[bytes] | None = None

    def teardown(self, worker: Worker) -> None:
        self.shards = None
        if self.slot:
            self.slot.close()

    def make(self, number: int, known: Mapping[str, Place]) -> Made | InputError:
        """Make a shard. The user's mistakes are returned, not raised: trying again would not mend them."""
        with self.one_at_a_time:
            torch.set_num_threads(self.threads)
            try:
                if self.shards is None:
                    self.shards = self._load()
                return self.shards.make(number, known)
            except InputError as error:
                return error

    def _load(self) -> Shards:
        """The detector and all else that a shard needs, on the first one; the worker stays responsive meanwhile."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise InputError(
                f"a worker on {platform.node()} can't enter it ({error.strerror})",
                where=self.folder,
                fix="start the workers on machines that see the same files under the same paths",
            ) from error
        shards = Shards(**self.work, device=self._device())
        differing = [name for name, value in self.key.items() if shards.key[name] != value]
        if differing:
            raise InputError(
                f"a worker on {platform.node()} would make other shards: its {' and '.join(differing)} differ",
                where=self.folder,
                fix="start the workers again, in the environment that this command runs in",
            )
        shards.cache.versions = self.versions
        return shards

    def _device(self) -> str:
        device, count = torch_device(self.device), torch.cuda.device_count()
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
