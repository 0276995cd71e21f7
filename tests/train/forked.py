"""Processes that train together, as a launcher starts them, but forked: torch is imported once."""

import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch


def run_together(count: int, work: Callable[[], None]) -> None:
    """Do `work` in `count` processes with the environment that torchrun gives them; exit with 1 if one fails.

    For a process that has done nothing with torch yet.
    """
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if not child:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
            os.environ.update({name: str(number) for name, number in numbers.items()})
            try:
                work()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
