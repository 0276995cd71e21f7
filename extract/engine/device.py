"""Torch's device: the one that "auto" means on this machine, and the environment that may move results' last bits."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from manifests.errors import InputError


def torch_device(requested: str) -> str:
    """The torch device `requested`; "auto" is CUDA if the machine has it, else the CPU.

    TF32 is turned off on the way. Raises `InputError` for CUDA on a machine without it.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if requested.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            "no CUDA device is here",
            where=f"SELFALIGN_DEVICE={requested} on {platform.node()}",
            fix="unset it, or use cpu",
        )
    return requested


def make_current(device: str | torch.device) -> None:
    """Make a numbered GPU the current device of this thread, which pins memory for it; a new thread's is GPU 0."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def environment(device: str, batch_size: int, *libraries: str) -> dict[str, Any]:
    """Facts that may move the last bits of results: device, threads, batch size, versions of torch and libraries."""
    return {
        "device": device.partition(":")[0],
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "torch": torch.__version__,
        **{name: version(name) for name in libraries},
    }
