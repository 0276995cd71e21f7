"""The curves of a run: `epochs.csv`, one row an epoch, lines for a terminal, and TensorBoard where it is asked for."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.errors import InputError
from manifests.files import atomic


def write_curves(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write one CSV row an epoch, atomically. A loss term that wasn't on yet counts as 0."""
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval=0.0, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )


def epoch_line(
    name: str, rows: Sequence[Mapping[str, float]], losses: Collection[str], epochs: int, best_epoch: int
) -> str:
    """The last epoch of the run `name` as one line: mean loss and its terms, validation R@sum, the best epoch so far.

    rows : the curves of the epochs that are done; losses : the names of the terms, each times its weight; epochs :
    how many are planned; best_epoch : a row of `rows`.
    """
    row, best = rows[-1], rows[best_epoch]
    terms = [f"{term} {row[term]:.4g}" for term in losses if term in row]
    shares = f" ({', '.join(terms)})" if len(terms) > 1 else ""
    so_far = "the best so far" if best is row else f"best so far {best['val_rsum']:.1f} in epoch {best_epoch + 1}"
    return (
        f"{name}: epoch {len(rows)} of {epochs}, mean loss {row['loss']:.4g}{shares}, "
        f"validation R@sum {row['val_rsum']:.1f}, {so_far}"
    )


def final_line(name: str, rows: Sequence[Mapping[str, float]], best_epoch: int) -> str:
    """The validation recalls of the epoch whose weights the run `name` keeps, as one line."""
    best = rows[best_epoch]
    ways = {"i2t": "captions for an image", "t2i": "images for a caption"}
    recalls = [
        f"{task} R@1 {best[f'val_{way}_r1']:.1f}, R@5 {best[f'val_{way}_r5']:.1f}, R@10 {best[f'val_{way}_r10']:.1f}"
        for way, task in ways.items()
        if f"val_{way}_r1" in best
    ]
    kept = f"{name}: keeps epoch {best_epoch + 1} of {len(rows)}, validation R@sum {best['val_rsum']:.1f}"
    return "; ".join([kept, *recalls])


class TensorBoard:
    """Writes the same rows as TensorBoard scalars; without a folder it does nothing.

    Raises `InputError` where a folder is asked for and tensorboard isn't installed.
    """

    def __init__(self, folder: Path | None, run: str, epoch: int):
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                f"tensorboard can't be imported ({error})",
                where="environment variable SELFALIGN_TENSORBOARD",
                fix="install tensorboard, or unset the variable",
            ) from error
        self._writer = SummaryWriter(str(Path(folder) / run), purge_step=epoch)

    def write(self, row: dict[str, float]) -> None:
        """Write an epoch's row."""
        if self._writer is None:
            return
        for key, value in row.items():
            if key != "epoch":
                self._writer.add_scalar(key, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
