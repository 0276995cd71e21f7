"""Weights by path or address, fetched once into a cache and always checked against their sha256."""

import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from pydantic import Field

from extract.packages import local_path
from manifests.errors import InputError
from manifests.files import atomic, sha256
from manifests.opening import open_file
from manifests.progress import progress
from manifests.typed import Digest, Settings

_CHUNK = 1 << 20


class WeightsSettings(Settings):
    """A detector with weights in a file."""

    name: str
    weights: str = Field(description="path or address of the weights, or package:MODULE/FILE of a Python package")
    sha256: Digest = Field(description="of the weights file")


def cache_folder() -> Path:
    """Where fetched weights are kept: ``selfalign/weights`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfalign" / "weights"


def weights_place(weights: str, digest: str) -> Path:
    """Where weights lie on this machine, or will lie once they are fetched.

    weights : a path; an http, https, ftp or file address; or ``package:MODULE/FILE`` (`extract.packages`).

    Raises `InputError` where that package isn't installed.
    """
    if not is_address(weights):
        return local_path(weights)
    return cache_folder() / digest / (Path(urllib.parse.urlsplit(weights).path).name or "weights")


def local_weights(weights: str, digest: str) -> Path:
    """The path of checked weights on this machine.

    Parameters
    ----------
    weights : as in `weights_place`; what has an address is fetched unless the cache has it.
    digest : the sha256 that the file must have.

    Raises
    ------
    InputError : no such file, no such package, an address that doesn't answer, another hash.
    """
    path = weights_place(weights, digest)
    if not path.is_file():
        if not is_address(weights):
            fix = "correct `detector.weights`, or put the file there"
            raise InputError("no such weights file", where=path, fix=fix)
        _fetch(weights, digest, path)
    _check(path, digest, weights)
    return path


def is_address(weights: str) -> bool:
    """Whether weights are to be fetched."""
    return len(scheme := urllib.parse.urlsplit(weights).scheme) > 1 and scheme != "package"


def _fetch(address: str, digest: str, path: Path) -> None:
    try:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme == "file":  # a pipe or a device there would never end
            open_file(Path(urllib.request.url2pathname(parts.path))).close()
        with urllib.request.urlopen(address, timeout=60) as answer, atomic(path) as temporary:
            total = int(answer.headers.get("Content-Length", 0)) or None
            with open(temporary, "wb") as file, progress(what="weights", unit="MB", total=total and total >> 20) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(1)
            _check(temporary, digest, address)
    except (urllib.error.URLError, OSError) as error:
        raise InputError(
            f"the weights can't be fetched ({error})",
            where=address,
            fix="correct `detector.weights`, or fetch the file by hand and name its path",
        ) from error


def _check(path: Path, digest: str, where: str) -> None:
    found = sha256(path)
    if found != digest:
        raise InputError(
            f"the weights have sha256 {found}, `detector.sha256` asks for {digest}",
            where=where,
            fix="fetch the right file, or put the new hash there if you mean to change features",
        )
