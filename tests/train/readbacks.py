"""Counts the operations of a step that make a device wait: those whose result's value, not its place, Python needs."""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
WAITS |= {"unique_consecutive", "unique_dim_consecutive", "repeat_interleave", "bincount", "_local_scalar_dense"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


class ReadBacks(TorchDispatchMode):
    """Counts operations by name, and those of `found` that read values back, on any device as on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.every: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in INDEXING and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        self.every[name] += 1
        if name in WAITS or by_mask:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of several devices, and a copy between them; a single number may be anywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()]
        devices = {x.device for x in tensors}
        if tensors and func.overloadpacket.__name__ == "_to_copy":  # a device waits for memory that isn't pinned
            devices.add(torch.device(kwargs.get("device") or tensors[0].device))
        if len(devices) > 1:
            raise AssertionError(f"{func} has tensors on {sorted(map(str, devices))}")
        return func(*args, **kwargs)
