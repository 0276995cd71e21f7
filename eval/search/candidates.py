"""The candidates of a search: vectors in full precision, and in 8 bits with a bound on the rounding error.

A code is a whole number from -127 to 127; times its vector's scale it approximates the vector's number. Products of
codes are sums of whole numbers, so they are exact in any order. Processors multiply them faster than they read
half-precision vectors (docs/search.md). A candidate has k views of length P and a part of length S that the views
share, as in `eval.embeddings`. A candidate of one view has one vector: P is the whole length, S is 0.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import torch
from numpy.lib.format import open_memmap
from pydantic import Field

from eval.arrays import open_array, release, save_array
from manifests.errors import InputError
from manifests.files import atomic, write_json
from manifests.progress import progress
from manifests.typed import read_checked
from train.device import fits_on_gpu

BLOCK_NUMBERS = 1 << 24  # converted at a time
CODES = 127
BOUNDS, NORMS = "bounds.json", "norms.npy"
SHORTEST = 1e-30  # a vector without a length, which is like nothing
SLACK = 1.001


@dataclass(frozen=True)
class Part:
    """Vectors in both precisions.

    full : the arrays `[N, k, P_i]`, float32, whose last axes side by side are the vectors.
    codes, scales : `[N, k, P]` int8 and `[N, k]` float32, on one device; a vector is nearly its codes times its scale.
    longest : no vector is longer.
    rounding : no vector is farther from its codes times its scale.
    """

    full: tuple[np.ndarray, ...]
    codes: torch.Tensor
    scales: torch.Tensor
    longest: float
    rounding: float

    @property
    def length(self) -> int:
        return self.codes.shape[2]

    def rows(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some vectors in full precision, `[M, k, P]`."""
        parts = [array[rows] for array in self.full]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


@dataclass(frozen=True)
class Candidates:
    """The N candidates of a search.

    `views` has k vectors each. `context` is the part that the views share, one vector each; its length is 0 where they
    share nothing. `norms [N]` float64 is the length of a candidate's mean view beside its context.
    """

    views: Part
    context: Part
    norms: np.ndarray

    def __len__(self) -> int:
        return len(self.norms)

    @property
    def device(self) -> torch.device:
        """Where the codes lie."""
        return self.views.codes.device

    @property
    def numbers(self) -> int:
        """How many numbers a candidate has: k P + S."""
        return self.views.codes.shape[1] * self.views.length + self.context.length

    def on(self, device: str) -> Self:
        """The same candidates with their codes on a GPU, where half of its free memory holds them; else as they are."""
        where, parts = torch.device(device), (self.views, self.context)
        size = sum(part.codes.nbytes + part.scales.nbytes for part in parts)
        if not fits_on_gpu(where, size):
            return self
        moved = (replace(part, codes=part.codes.to(where), scales=part.scales.to(where)) for part in parts)
        return type(self)(*moved, self.norms)

    def release(self) -> None:
        """Take the vectors in full precision out of this process's resident memory."""
        for part in (self.views, self.context):
            for array in part.full:
                release(array)

    @classmethod
    def open(cls, folder: Path, views: np.ndarray, context: np.ndarray) -> Self:
        """Map the files that `write_codes` wrote to `folder` for `views` and `context`."""
        fix = "make the index again: `selfalign index`"
        bounds, _ = read_checked(folder / BOUNDS, dict[str, _Bounds], fix=fix)
        parts = []
        for name, full in _parts(views, context).items():
            if name not in bounds:
                raise InputError(f"no {name}", where=folder / BOUNDS, fix=fix)
            shape = (len(views), full[0].shape[1], sum(array.shape[2] for array in full))
            codes = _of_shape(folder / f"{name}.npy", "|i1", shape, fix)
            scales = _of_shape(folder / f"{name}_scales.npy", "<f4", shape[:2], fix)
            parts.append(Part(full, torch.from_numpy(codes), torch.from_numpy(scales), *bounds[name]))
        norms = _of_shape(folder / NORMS, "<f8", (len(views),), fix)
        if not (norms >= SHORTEST).all():
            raise InputError("a length is 0 or below", where=folder / NORMS, fix=fix)
        return cls(*parts, norms)


_Bounds = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


def _of_shape(path: Path, dtype: str, shape: tuple[int, ...], fix: str) -> np.ndarray:
    found = open_array(path, dtype, len(shape), fix=fix)
    if found.shape != shape:
        raise InputError(f"its shape is {list(found.shape)}, that of the embeddings {list(shape)}", where=path, fix=fix)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InputError("it has NaN or infinite numbers", where=path, fix=fix)
    return found


def write_codes(folder: Path, views: np.ndarray, context: np.ndarray, *, what: str) -> None:
    """Write the codes of `views [N, k, P]` and `context [N, S]`, float32, to `folder`, a block at a time, with their
    scales, bounds (`bounds.json`) and lengths (`norms.npy`). `what` names them in the progress bar."""
    bounds, squares = {}, np.zeros(len(views))
    for name, full in _parts(views, context).items():
        count, each, length = len(views), full[0].shape[1], sum(array.shape[2] for array in full)
        scales = np.ones((count, each), np.float32)
        longest = rounding = 0.0
        with atomic(folder / f"{name}.npy") as temporary:
            codes = open_memmap(temporary, "w+", np.int8, (count, each, length))
            step = max(1, BLOCK_NUMBERS // max(1, each * length))
            blocks = range(0, count if length else 0, step)
            for start in progress(blocks, what=f"{what}: 8 bits", unit="blocks", quiet=not length):
                rows = slice(start, start + step)
                exact = torch.from_numpy(np.concatenate([array[rows] for array in full], axis=2))
                own = (exact.abs().amax(dim=2) / CODES).clamp_(min=torch.finfo(torch.float32).tiny)
                near = (exact / own[..., None]).round_().clamp_(-CODES, CODES)
                codes[rows], scales[rows] = near.to(torch.int8).numpy(), own.numpy()
                squares[rows] += exact.mean(dim=1, dtype=torch.float64).square_().sum(dim=1).numpy()
                longest = max(longest, float(exact.norm(dim=2).max()))
                rounding = max(rounding, float(near.mul_(own[..., None]).sub_(exact).norm(dim=2).max()))
            codes.flush()
            del codes
        save_array(folder / f"{name}_scales.npy", scales)
        # Float32's own rounding: of the lengths, and of the products that were taken off.
        bounds[name] = [longest * SLACK, (rounding + 2.0**-22 * longest) * SLACK]
    save_array(folder / NORMS, np.sqrt(squares).clip(min=SHORTEST))
    write_json(folder / BOUNDS, bounds)


def _parts(views: np.ndarray, context: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    """The arrays `[N, k, P_i]` that each part is made of."""
    shared = context[:, None]
    if views.shape[1] == 1:
        return {"views": (views, shared) if context.shape[1] else (views,), "context": (shared[:, :, :0],)}
    return {"views": (views,), "context": (shared,)}
