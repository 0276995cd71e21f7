"""How fast SCAN's layout is imported and exported, against a plain copy and a plain read of the same bytes.

    python -m benchmarks.exchange --out benchmarks/exchange.json

20,000 images of 36 regions of 2,048 numbers (5.9 GB of float32) are made in a temporary folder. Each round reads the
features and copies them to a new file. It then runs `selfalign import` and exports the result by `selfalign export`.
Each command has a process of its own, whose peak memory is measured. The source's pages are dropped from memory before
each, and written files are synced to disk. Medians of the ratios.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from extract.stores.npy import write_header
from manifests.files import write_json, write_text

REGIONS, DIM = 36, 2048
_BLOCK = 2**24
_COMMAND = """
import re, sys
from pipeline.cli import main
main(sys.argv[1:], standalone_mode=False)
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000)
"""


def make(folder: Path, images: int) -> Path:
    """Write the layout with features that look like a network's: rectified, no two images alike."""
    rng = np.random.default_rng(0)
    base = np.maximum(rng.standard_normal((64, REGIONS, DIM), np.float32), 0)
    path = folder / "train_ims.npy"
    with open(path, "wb") as file:
        write_header(file, (images, REGIONS, DIM), np.float32)
        for image in range(images):
            base[image % 64, 0, :2] = image, image % 7
            file.write(base[image % 64].data)
        file.flush()
        os.fsync(file.fileno())
    write_text(folder / "train_caps.txt", "".join(f"Caption {i} of an image.\n" for i in range(5 * images)))
    return path


def forget(path: Path) -> None:
    """Drop a file's pages from memory."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> float:
    """Seconds to read a file from disk."""
    forget(path)
    buffer, start = bytearray(_BLOCK), time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start


def copy(path: Path) -> float:
    """Seconds to copy a file from disk to disk."""
    forget(path)
    target = path.with_suffix(".copy")
    buffer, start = memoryview(bytearray(_BLOCK)), time.perf_counter()
    with open(path, "rb", buffering=0) as source, open(target, "wb", buffering=0) as file:
        while count := source.readinto(buffer):
            file.write(buffer[:count])
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def there_and_back(path: Path) -> tuple[float, float, float, float]:
    """Seconds of `selfalign import` and `selfalign export`, starting Python included, and their peak memory in MB.

    An export's counts the store's pages that it has mapped, which the system may drop at any time.
    """
    store, exported = path.parent / "out", path.parent / "exported"
    forget(path)
    in_s, in_peak = command(path.parent, "import", "scan", path.parent, store)
    for shard in store.glob("regions/*.h5"):
        forget(shard)
    out_s, out_peak = command(path.parent, "export", "scan", store, exported)
    start = time.perf_counter()
    for file in exported.iterdir():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    out_s += time.perf_counter() - start
    for folder in (store, exported):
        shutil.rmtree(folder)
    return in_s, out_s, in_peak, out_peak


def command(folder: Path, *arguments: object) -> tuple[float, float]:
    """Seconds and peak memory in MB of a command."""
    environment = os.environ | {"SELFALIGN_STAGING": str(folder / "staging")}
    line, start = [sys.executable, "-c", _COMMAND, *map(str, arguments)], time.perf_counter()
    done = subprocess.run(line, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, float(done.stdout.split()[-1])


@click.command()
@click.option("--images", default=20_000, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="On the disk to measure.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the numbers there.")
def main(images: int, repeats: int, folder: Path | None, out: Path | None) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = make(Path(temporary), images)
        size = path.stat().st_size
        rounds = [(read(path), copy(path), *there_and_back(path)) for _ in range(repeats)]
    reads, copies, imports, exports, peaks, mapped = (list(column) for column in zip(*rounds, strict=True))
    result = {
        "images": images,
        "gigabytes": round(size / 1e9, 2),
        "import_s": round(statistics.median(imports), 1),
        "export_s": round(statistics.median(exports), 1),
        "copy_s": round(statistics.median(copies), 1),
        "read_s": round(statistics.median(reads), 1),
        "speed_of_a_copy": [round(copied / imported, 2) for copied, imported in zip(copies, imports, strict=True)],
        "export_speed_of_a_copy": [round(copied / out, 2) for copied, out in zip(copies, exports, strict=True)],
        "speed_of_a_read": [round(plain / imported, 2) for plain, imported in zip(reads, imports, strict=True)],
        "peak_mb": round(max(peaks)),
        "export_peak_mb": round(max(mapped)),
    }
    for name in ("speed_of_a_copy", "export_speed_of_a_copy", "speed_of_a_read"):
        result[f"{name}_median"] = round(statistics.median(result[name]), 2)
    click.echo(json.dumps(result, indent=2))
    if out:
        command = f"python -m benchmarks.exchange --images {images} --repeats {repeats}"
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "numpy": np.__version__}
        write_json(out, {"command": command, "machine": machine, "result": result})


if __name__ == "__main__":
    main()
