"""How far results of the same numbers may be apart: on another device, in another batch, by another library."""

import numpy as np

ROUNDING = 2**-9  # of half precision, as a part of a number
FEATURES = 0.01  # of the root mean square


def difference_beyond(known: np.ndarray, again: np.ndarray, bound: float = 0.0, features: bool = False) -> float | None:
    """The largest difference of two arrays, where one is beyond `bound`; of `features`, `FEATURES` of their root mean
    square beside half precision's rounding. None where none is."""
    before, now = known.astype(np.float64), again.astype(np.float64)
    if before.shape != now.shape:
        return float("inf")
    if not before.size:
        return None
    bounds = FEATURES * np.sqrt(np.square(before).mean()) + ROUNDING * np.abs(before) if features else bound
    difference = np.abs(now - before)
    return None if (difference <= bounds).all() else float(difference.max())
