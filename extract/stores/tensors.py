"""Tensors in safetensors files. Any damage in one is an `InputError`; no pickle is ever read."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from manifests.errors import InputError


def read_tensors(path: Path, *, fix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata. Raises `InputError`, with `fix`, for a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors' own error is a plain Exception
        raise InputError(f"no tensors that can be read ({error})", where=path, fix=fix) from error


def require_shapes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], where: object, *, fix: str
) -> None:
    """Raise `InputError`, with `fix`, unless there are the `expected` tensors of these shapes, and no others."""
    found = _shapes(tensors)
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            raise InputError(f"it has no {name}", where=where, fix=fix)
        if name not in expected:
            raise InputError(f"it has {name}, for which there is no use", where=where, fix=fix)
        if found[name] != expected[name]:
            raise InputError(f"{name} is {list(found[name])}, not {list(expected[name])}", where=where, fix=fix)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: object, *, fix: str) -> None:
    """Give a module its parameters. Raises `InputError`, with `fix`, where these aren't exactly its own."""
    # torch fills in a count of batches that isn't there.
    expected = {n: shape for n, shape in shapes_of(module).items() if n in tensors or not n.endswith("batches_tracked")}
    require_shapes(tensors, expected, where, fix=fix)
    try:
        module.load_state_dict(dict(tensors))
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(f"its numbers can't be taken over ({error})", where=where, fix=fix) from error


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's parameters and buffers, by name."""
    return _shapes(module.state_dict())


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
