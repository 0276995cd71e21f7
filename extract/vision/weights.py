"""Weights by path or address, fetched once into a cache and always checked against their sha256."""

import os
import re
import urllib.parse
from pathlib import Path

from pydantic import Field

from extract.packages import local_path
from extract.vision.fetching import fetching
from manifests.errors import InputError
from manifests.files import sha256
from manifests.locks import sole_writer
from manifests.typed import Digest, Settings

_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:")  # a scheme of one letter would be a disk


class WeightsSettings(Settings):
    """A detector with weights in a file."""

    name: str
    weights: str = Field(description="path or address of the weights, or package:MODULE/FILE of a Python package")
    sha256: Digest = Field(description="of the weights file")


def cache_folder() -> Path:
    """Where fetched weights are kept: ``selfalign/weights`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selfalign" / "weights"


def unfinished() -> Path:
    """The folder of files that aren't whole yet, on the disk of `cache_folder`."""
    return cache_folder() / "unfinished"


def weights_place(weights: str, digest: str) -> Path:
    """Where weights lie on this machine, or will lie once they are fetched.

    weights : a path; an http, https, ftp or file address; or ``package:MODULE/FILE`` (`extract.packages`).

    Raises `InputError` where that package isn't installed.
    """
    if not is_address(weights):
        return local_path(weights)
    try:
        name = Path(urllib.parse.urlsplit(weights).path).name
    except ValueError:  # an address that is none
        name = ""
    return cache_folder() / digest / (name[-200:] if name not in ("", "..") else "weights")


def local_weights(weights: str, digest: str) -> Path:
    """The path of checked weights on this machine.

    Parameters
    ----------
    weights : as in `weights_place`; a file with an address is fetched unless the cache has it.
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
        with sole_writer(path, f"fetch of {weights}"):
            if not path.is_file():  # another process may have fetched it meanwhile
                with fetching(weights, unfinished()) as fetched:
                    _check(fetched.path, digest, weights)
                    return keep(fetched.path, weights, digest)
    _check(path, digest, weights)
    return path


def is_address(weights: str) -> bool:
    """Whether weights are to be fetched."""
    return bool(_ADDRESS.match(weights)) and not weights.startswith("package:")


def keep(fetched: Path, address: str, digest: str) -> Path:
    """Move a fetched file to where `local_weights` looks for the weights of an address and a sha256; gives its path."""
    path = weights_place(address, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(fetched, path)
    return path


def _check(path: Path, digest: str, where: str) -> None:
    found = sha256(path)
    if found != digest:
        raise InputError(
            f"the weights have sha256 {found}, `detector.sha256` asks for {digest}",
            where=where,
            fix="fetch the right file, or put the new hash there if you mean to change features",
        )
