"""The curves of a run: `epochs.csv`, one row an epoch, and TensorBoard where a machine asks for it."""

import csv
from collections.abc import Sequence
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
