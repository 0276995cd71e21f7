"""The Dask cluster that makes stores: what ``SELFALIGN_CLUSTER`` means.

`none`: no cluster. `local:N`: N worker processes on this machine. `tcp://host:8786`: a scheduler that runs already.
`slurm:N`: N Slurm jobs (`slurm`: one), described by Dask's own configuration (``jobqueue.slurm``).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from extract.engine.maker import Workers
from manifests.errors import InputError
from pipeline.machine import Machine

if TYPE_CHECKING:
    from distributed.deploy import Cluster

CONNECT_SECONDS = 5


@contextmanager
def open_workers(machine: Machine) -> Iterator[Workers | None]:
    """The workers of the machine's cluster, or None where there is none; what it started ends with the block.

    Raises `InputError` for a scheduler that can't be reached and for `slurm` where dask-jobqueue isn't installed.
    """
    if machine.cluster == "none":
        yield None
        return
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.WARNING)
    with _cluster(machine.cluster) as cluster:
        try:
            client = Client(cluster, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Dask scheduler answers there ({error})",
                where=f"SELFALIGN_CLUSTER={machine.cluster}",
                fix="start one with `dask scheduler`, or correct the address",
            ) from error
        with client:
            click.echo(f"dashboard: {client.dashboard_link}")
            yield Workers(client, machine.device, worker_threads(machine))


def worker_threads(machine: Machine) -> int | None:
    """Torch's threads in each worker: SELFALIGN_THREADS where it is set, else a worker's share of this machine's cores.

    None, for workers elsewhere, leaves it to how they were started.
    """
    if "threads" in machine.model_fields_set:
        return machine.threads
    return max(1, machine.threads // _number(machine.cluster)) if machine.cluster.startswith("local:") else None


def _number(cluster: str) -> int:
    return int(cluster.partition(":")[2] or 1)


@contextmanager
def _cluster(cluster: str) -> Iterator["Cluster | str"]:
    if cluster.startswith("local:"):
        from distributed import LocalCluster

        # A shard has few pictures in memory at a time; Dask's limit would only restart workers of large models.
        with LocalCluster(
            n_workers=_number(cluster), threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
        ) as local:
            yield local
    elif cluster.startswith("slurm"):
        with _slurm() as jobs:
            # The same number at least and at most: Dask submits another job for one that ends.
            jobs.adapt(minimum_jobs=_number(cluster), maximum_jobs=_number(cluster))
            yield jobs
    else:
        yield cluster


def _slurm() -> "Cluster":
    where = "SELFALIGN_CLUSTER=slurm"
    try:
        import dask
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise InputError(
            "dask-jobqueue isn't installed", where=where, fix='install it with `pip install "dask-jobqueue>=0.9"`'
        ) from error
    try:
        # By default dask-jobqueue makes several workers of a job's cores.
        return SLURMCluster(processes=dask.config.get("jobqueue.slurm.processes") or 1)
    except ValueError as error:
        raise InputError(
            str(error), where=where, fix="describe a job in `jobqueue.slurm` of ~/.config/dask/jobqueue.yaml"
        ) from error
