"""Have pictures changed since their manifest was made? DVC doesn't look at them: `selfalign check` does."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from manifests.opening import open_file
from manifests.progress import progress
from manifests.schema import ImageRow
from manifests.tables import Manifest

_TOGETHER = 1024


def changed_pictures(manifest: Manifest, images: Path) -> Iterator[tuple[ImageRow, str]]:
    """Every image whose picture below the image root isn't the manifest's, with what is wrong: "changed", "missing" or
    that it can't be read. Hashes all of them, in threads."""

    def wrong(row: ImageRow) -> str | None:
        try:
            with open_file(Path(images) / row.path) as file:
                return None if hashlib.file_digest(file, "sha256").hexdigest() == row.sha256 else "changed"
        except FileNotFoundError:
            return "missing"
        except OSError as error:
            return f"can't be read ({error.strerror})"

    with (
        ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool,
        progress(what="check", unit="pictures", total=len(manifest)) as bar,
    ):
        for start in range(0, len(manifest), _TOGETHER):
            rows = manifest.images[start : start + _TOGETHER]
            for row, told in zip(rows, pool.map(wrong, rows), strict=True):
                bar.update()
                if told:
                    yield row, told
