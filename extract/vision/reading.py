"""The manifest's pictures, read in threads ahead of the network that looks at them."""

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from extract.vision.decode import decode
from manifests.errors import InputError
from manifests.opening import MAX_PIXELS, open_file
from manifests.schema import ImageRow

T, U = TypeVar("T"), TypeVar("U")


_AT_ONCE = 2**26  # bytes; a larger file is hashed and then decoded from the disk, to be in memory only once


def read_picture(root: Path, row: ImageRow, max_pixels: int = MAX_PIXELS, *, truncated: bool = False) -> np.ndarray:
    """The picture of a row below the image root, upright RGB, uint8 ``[height, width, 3]``; `truncated` as in `decode`.

    Raises
    ------
    InputError : it is missing or no file, or has changed since the manifest was made.
    UnreadableImage : it can't be decoded, or has more than `max_pixels`.
    """
    path = root / row.path
    try:
        with open_file(path) as file:
            small = file.seek(0, io.SEEK_END) <= _AT_ONCE
            file.seek(0)
            picture = io.BytesIO(file.read()) if small else file
            digest = hashlib.file_digest(picture, "sha256").hexdigest()
            if digest == row.sha256:
                picture.seek(0)
                return decode(picture, max_pixels, truncated=truncated)
    except OSError as error:
        raise InputError(
            f"image {row.id!r} is in the manifest but can't be opened ({error.strerror})",
            where=path,
            fix="restore the picture, or `dvc repro -f manifest@<data set>`",
        ) from error
    raise InputError(
        f"image {row.id!r} has changed since the manifest was made",
        where=path,
        fix="restore the picture, or `dvc repro -f manifest@<data set>`",
    )


def ahead(pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], most: int) -> Iterator[Future[U]]:
    """Futures of ``work(item)`` in order, never more than `most` of them unread."""
    futures: deque[Future[U]] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) == most:
            yield futures.popleft()
    yield from futures
