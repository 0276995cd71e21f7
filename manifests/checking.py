"""Have pictures changed since their manifest was made? DVC doesn't look at them: `selfalign check` does."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from manifests.opening import in_threads, open_file
from manifests.progress import progress
from manifests.schema import ImageRow
from manifests.tables import Manifest


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

    problems = in_threads(wrong, manifest.images)
    for row, problem in progress(problems, what="check", unit="pictures", total=len(manifest)):
        if problem:
            yield row, problem
