"""What a training or an evaluation asks of its device."""

import torch


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that tensors may still take: what nobody holds, and what torch keeps for this process."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
