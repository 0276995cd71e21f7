"""Processes that train together, one a device: who they are, and what they tell each other.

`accelerate launch` or `torchrun` starts them and `accelerate` finds out which device and which backend each one has.
One process alone exchanges nothing. Everything here is exact: what is gathered are bytes, and gradients follow.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from extract.engine.device import make_current

T = TypeVar("T")
# The others wait this long while the first one validates.
PATIENCE = timedelta(hours=3)
_isolated = False


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together: its rank, how many there are, its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0

    def alone(self) -> "Processes":
        """A copy of this process that knows no others."""
        return Processes(0, 1, self.device)

    def broadcast(self, value: T) -> T:
        """What the first process passes here, in every process."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first process's tensors, in every process."""
        if self.count == 1:
            return tensors
        copies = {}
        for name, (shape, dtype) in self.broadcast({name: (x.shape, x.dtype) for name, x in tensors.items()}).items():
            held = tensors[name].to(self.device) if self.first else torch.empty(shape, dtype=dtype, device=self.device)
            distributed.broadcast(held, src=0)
            copies[name] = held.cpu()
        return copies

    def gathered(self, item: T) -> T:
        """The rows of all processes, by rank, of every tensor in a dataclass; padded to the widest of each dimension.

        Every process is to compute the same loss of what it gets, and take the mean of its gradients (`GradientMean`).
        A row's gradient is scaled by the number of processes on its way back: the mean is then that of one process with
        all rows.
        """
        if self.count == 1:
            return item
        sizes = torch.tensor([size for tensor in tensors_of(item) for size in tensor.shape], device=self.device)
        all_sizes = [torch.empty_like(sizes) for _ in range(self.count)]
        distributed.all_gather(all_sizes, sizes)
        rows = [int(each[0]) for each in all_sizes]
        widest = iter(torch.stack(all_sizes).amax(0).tolist())

        def exchange(tensor: Tensor) -> Tensor:
            shape = [next(widest) for _ in tensor.shape]
            padded = padded_to(tensor, shape[1:])
            return _Gathered.apply(padded, self, rows) if 0 not in shape else padded.new_zeros(sum(rows), *shape[1:])

        return combined(exchange, item)


class GradientMean:
    """Replaces gradients by their means over the processes, bucket by bucket, while the backward still makes others.

    The buckets follow the order in which the last step's gradients came, the first process's in all of them. They are
    sent in that order whatever is ready when; what isn't in any, and what follows one that isn't whole, is sent last.
    All processes must give gradients to the same parameters in a step: a part's forward may not branch on its data.

    Parameters
    ----------
    bytes_each : about the size of a bucket.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], processes: Processes, bytes_each: int = 25 << 20):
        self.processes, self.sent_early, self._bytes_each = processes, 0, bytes_each
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._buckets: list[list[int]] = []
        self._made: dict[int, None] = {}  # in the order in which they came
        self._sent: list[tuple[list[int], Tensor, Any]] = []
        self._listening = False
        for number, parameter in enumerate(self._parameters if processes.count > 1 else ()):
            parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._on_gradient(number))

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """A backward that gives the gradients their last part: buckets are sent as they are whole."""
        self._listening = self.processes.count > 1
        try:
            yield
        finally:
            self._listening = False
        self.sent_early = len(self._sent)

    def finish(self) -> None:
        """Send what is left, and wait for all."""
        if self.processes.count == 1:
            return
        done = {number for numbers, *_ in self._sent for number in numbers}
        there = [number for number, parameter in enumerate(self._parameters) if parameter.grad is not None]
        for bucket in self._bucketed([number for number in there if number not in done]):
            self._send(bucket)
        for numbers, flat, work in self._sent:
            work.wait()
            gradients = [self._parameters[number].grad for number in numbers]
            parts = flat.div_(self.processes.count).split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        if {number for bucket in self._buckets for number in bucket} != set(there):
            came = [*self._made, *(number for number in there if number not in self._made)]
            self._buckets = self._bucketed(self.processes.broadcast(came))
        self._sent.clear()
        self._made.clear()

    def _on_gradient(self, number: int) -> None:
        if not self._listening:
            return
        self._made[number] = None
        while len(self._sent) < len(self._buckets) and self._made.keys() >= set(self._buckets[len(self._sent)]):
            self._send(self._buckets[len(self._sent)])

    def _bucketed(self, numbers: list[int]) -> list[list[int]]:
        buckets: list[list[int]] = []
        size = self._bytes_each
        for number in numbers:
            if size >= self._bytes_each:
                buckets.append([])
                size = 0
            buckets[-1].append(number)
            size += self._parameters[number].numel() * self._parameters[number].element_size()
        return buckets

    def _send(self, bucket: list[int]) -> None:
        flat = torch.cat([self._parameters[number].grad.flatten() for number in bucket])
        self._sent.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))


def join(device: str) -> Processes:
    """This process among those that a launcher started; alone on `device` where none did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        make_current(device)
        return Processes(0, 1, torch.device(device))
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, state.device)


def leave() -> None:
    """Let go of the other processes at the end of a run."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def place() -> tuple[int, int]:
    """This process's rank and how many train together; (0, 1) inside `isolated`."""
    return (distributed.get_rank(), world_size()) if world_size() > 1 else (0, 1)


def summed_arrays(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, np.ndarray]:
    """Arrays of which each process has filled its own rows, zeros elsewhere: whole, in all processes."""
    if world_size() == 1:
        return arrays
    known: list[Any] = [None] * world_size()
    distributed.all_gather_object(known, {name: (array.shape, array.dtype) for name, array in arrays.items()})
    whole = {}
    for name, (shape, dtype) in sorted({name: kind for each in known for name, kind in each.items()}.items()):
        own = torch.from_numpy(arrays.get(name, np.zeros(shape, dtype))).to(device)
        distributed.all_reduce(own)
        whole[name] = own.cpu().numpy()
    return whole


def world_size() -> int:
    """How many processes train together; 1 inside `isolated`."""
    if _isolated or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


@contextmanager
def isolated() -> Iterator[None]:
    """The context in which every process works on its own."""
    global _isolated
    _isolated = True
    try:
        yield
    finally:
        _isolated = False


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of a tensor of one shape over all processes; gradients are summed on the way back."""
    return x if world_size() == 1 else _summed()(x)


@cache
def _summed() -> Callable[[Tensor], Tensor]:
    """Made when it is first needed: the decorator imports all of torch's compiler."""
    return torch.compiler.disable(_Summed.apply)


def combined(change: Callable[..., Any], *items: T) -> T:
    """Dataclasses of one kind made into one, tensor by tensor, also in those and in dictionaries inside; None stays."""
    first = items[0]
    if first is None:
        return first
    if isinstance(first, Tensor):
        return change(*items)
    if isinstance(first, dict):
        return {key: combined(change, *(item[key] for item in items)) for key in first}
    inside = {f.name: combined(change, *(getattr(item, f.name) for item in items)) for f in fields(first)}
    return type(first)(**inside)


def tensors_of(item: Any) -> list[Tensor]:
    """The tensors in a dataclass, in the order of its fields, those of dataclasses inside included."""
    found: list[Tensor] = []
    combined(found.append, item)
    return found


def padded_to(tensor: Tensor, widths: Iterable[int]) -> Tensor:
    """``[B, ...]`` with zeros behind, so that its other dimensions have these sizes."""
    missing = [wide - size for wide, size in zip(widths, tensor.shape[1:], strict=True)]
    return F.pad(tensor, [end for more in reversed(missing) for end in (0, more)]) if any(missing) else tensor


class _Gathered(torch.autograd.Function):
    """Rows ``[B_r, ...]`` of each process to ``[sum of B_r, ...]`` in all of them."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor, processes: Processes, rows: list[int]) -> Tensor:
        ctx.start, ctx.rows, ctx.count = sum(rows[: processes.rank]), len(tensor), processes.count
        # As bytes, since not every backend knows every type.
        sent = torch.zeros(max(rows), *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
        sent[: len(tensor)] = tensor
        received = [torch.empty_like(sent) for _ in rows]
        distributed.all_gather([each.view(torch.uint8) for each in received], sent.view(torch.uint8))
        return torch.cat([each[:count] for each, count in zip(received, rows, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[ctx.start : ctx.start + ctx.rows] * ctx.count, None, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        total = grad.clone()
        distributed.all_reduce(total)
        return total
