"""What a training or an evaluation asks of its device."""

import torch


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors may still take: what nobody holds, and what torch keeps for this process."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def fits_on_gpu(device: torch.device, size: int) -> bool:
    """Whether a device is a GPU with `size` bytes in half of its free memory: the rest is for what is computed."""
    return device.type == "cuda" and size < free_bytes(device) / 2
