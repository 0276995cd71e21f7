"""Features of photographs in SCAN's layout with a part of `train` held out, so that `dev` can be the test split.

    python -m benchmarks.photographs FROM OUT [--told dev] [--regions 5]

FROM holds `train` and another split (`docs/exchange.md`, "scan"). In OUT every eighth image of train is `dev`, and the
others are `train`. Epochs and values are chosen on `dev`. FROM's other split is `test`, on which figures are reported.
"""

from pathlib import Path

import click
import numpy as np

from manifests.files import whole_folder

HELD_OUT = 8
ARRAYS = ("ims", "boxes", "img_sizes")


def hold_out(source: Path, out: Path, reported: str = "dev", regions: int | None = None) -> dict[str, int]:
    """Write OUT; gives the images of each split.

    Parameters
    ----------
    reported : FROM's split that becomes `test`.
    regions : the first regions of each image that are kept; None keeps all.
    """
    rows = np.arange(len(np.load(source / "train_ims.npy", mmap_mode="r")))
    held = rows % HELD_OUT == HELD_OUT - 1
    tests = np.arange(len(np.load(source / f"{reported}_ims.npy", mmap_mode="r")))
    parts = {"train": ("train", rows[~held]), "dev": ("train", rows[held]), "test": (reported, tests)}
    with whole_folder(out) as folder:
        for split, (name, chosen) in parts.items():
            for array in ARRAYS:
                kept = np.load(source / f"{name}_{array}.npy", mmap_mode="r")[chosen]
                np.save(folder / f"{split}_{array}.npy", kept if array == "img_sizes" else kept[:, :regions])
            for lines in ("ids", "caps"):
                found = (source / f"{name}_{lines}.txt").read_text(encoding="utf-8").splitlines()
                each = len(found) // len(np.load(source / f"{name}_ims.npy", mmap_mode="r"))
                texts = [line for row in chosen for line in found[row * each : (row + 1) * each]]
                (folder / f"{split}_{lines}.txt").write_text("".join(f"{line}\n" for line in texts), encoding="utf-8")
    return {split: len(chosen) for split, (_, chosen) in parts.items()}


@click.command()
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--told", "reported", default="dev", show_default=True, help="FROM's split that becomes test")
@click.option("--regions", type=click.IntRange(min=1), help="the first regions of each image, which are kept")
def main(source: Path, out: Path, reported: str, regions: int | None) -> None:
    """Hold a part of train out."""
    click.echo(", ".join(f"{split} {count}" for split, count in hold_out(source, out, reported, regions).items()))


if __name__ == "__main__":
    main()
