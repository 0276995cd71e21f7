"""Arrays as files that are whole or absent."""

from pathlib import Path

import numpy as np

from manifests.files import atomic


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one `.npy` file atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one `.npz` file of named arrays atomically; equal arrays give equal bytes."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
