"""Which of a model's parameters decide a result, read from autograd's graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def reached_by(model: nn.Module, result: Callable[[Any], Tensor]) -> list[nn.Parameter]:
    """The parameters of a `RetrievalModel` that `result`, of `Pairs`, depends on; its mode and statistics stay."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad():
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
