"""Which of a model's parameters decide a result, read from autograd's graph."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def reached_by(model: nn.Module, result: Callable[[Any], Tensor]) -> list[nn.Parameter]:
    """The parameters of a `RetrievalModel` that `result`, of `Pairs`, depends on; its mode and statistics stay.

    Compiled parts run as they were written: autograd knows a compiled part as one node of all its parameters.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        as_written = torch.compiler.set_stance("force_eager") if model.settings.compile else nullcontext()
        with torch.enable_grad(), as_written:
            reached = result(model(*model.example()))  # kept: the graph of a function in Python lives as long as it
    finally:
        for module, mode in modes:
            module.training = mode
    seen, waiting, found = set(), [reached.grad_fn], []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [after for after, _ in node.next_functions]
        if hasattr(node, "variable"):
            found.append(node.variable)
    return found
