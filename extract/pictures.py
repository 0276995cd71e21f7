"""The manifest's pictures, read in threads ahead of the network that looks at them."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from extract.images import decode
from manifests.errors import InputError
from manifests.schema import ImageRow

T, U = TypeVar("T"), TypeVar("U")


def read_picture(root: Path, row: ImageRow) -> np.ndarray:
    """The picture of a row below the image root, upright RGB, uint8 ``[height, width, 3]``.

    Raises
    ------
    InputError : it is missing, or has changed since the manifest was made.
    UnreadableImage : it can't be decoded.
    """
    path = root / row.path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"image {row.id!r} is in the manifest but can't be opened ({error.strerror})",
            where=path,
            fix="restore the picture, or run the manifest stage again",
        ) from error
    if hashlib.sha256(data).hexdigest() != row.sha256:
        raise InputError(
            f"image {row.id!r} has changed since the manifest was made",
            where=path,
            fix="run the manifest stage again: `dvc repro manifest@<data set>`",
        )
    return decode(data)


def ahead(pool: ThreadPoolExecutor, work: Callable[[T], U], items: Iterable[T], most: int) -> Iterator[Future[U]]:
    """Futures of ``work(item)`` in order, never more than `most` of them unread."""
    futures: deque[Future[U]] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) == most:
            yield futures.popleft()
    yield from futures
