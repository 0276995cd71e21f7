"""Which torch device "auto" means on this machine."""

import platform

import torch

from manifests.errors import InputError


def torch_device(wanted: str) -> str:
    """The torch device `wanted`; "auto" is CUDA where there is one, else the CPU.

    Raises `InputError` for CUDA where there is none.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            "no CUDA device is here",
            where=f"SELFALIGN_DEVICE={wanted} on {platform.node()}",
            fix="unset it, or use cpu",
        )
    return wanted
