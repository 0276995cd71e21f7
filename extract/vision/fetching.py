"""Fetches a file by its address: with progress, again where the answer breaks off, and from where it broke off.

The received bytes lie in a folder of their own until the file is whole, with the server's facts of it. A server that
can't go on, or whose file has changed since, sends it from the start.
"""

import errno
import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from manifests.errors import InputError
from manifests.files import room_for, write_json
from manifests.locks import sole_writer
from manifests.opening import open_file
from manifests.progress import progress

TRIES = 4
WAIT = 2.0  # seconds before the second try, twice as many before the third
_CHUNK = 1 << 20
_SUM = re.compile("[0-9a-f]{64}")
_LINKED = "X-Linked-Etag"  # the hub's: the sha256 of a file that it keeps elsewhere, on its redirect to there
_FIX = "look at the address in a browser, or fetch the file by hand and name its path"


class Fetched(NamedTuple):
    """A whole file, and the sha256 that its server claims for it, or None."""

    path: Path
    claimed: str | None


class Undecided(InputError):
    """The error of an open question, whether to keep a fetched file: it isn't fetched again."""


class _BrokenOff(Exception):
    """An answer that ended, failed or was refused in a way that may not last; the message says how."""


@contextmanager
def fetching(address: str, folder: Path) -> Iterator[Fetched]:
    """Give the whole file of an http, https, ftp or file address, below `folder`; it is gone after the block.

    If the block raises `Undecided`, the next call gives the same file. The bytes of a broken-off fetch stay there too,
    and the next one goes on from them.

    Raises
    ------
    InputError : an address that is none, that doesn't answer, or with answers that break off `TRIES` times.
    DiskFull : no room for it.
    """
    place = Path(folder) / hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    with sole_writer(place, f"fetch of {address}"), room_for(place):
        place.mkdir(parents=True, exist_ok=True)
        claimed = _whole(address, place)
        try:
            yield Fetched(place / _name(address), claimed)
        except Undecided:
            raise
        except Exception:
            shutil.rmtree(place, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)


def _whole(address: str, place: Path) -> str | None:
    """Fetch until all of it is there. Gives the sha256 that the server says."""
    for number in range(1, TRIES + 1):
        try:
            return _once(address, place)
        except _BrokenOff as error:
            if number == TRIES:
                reason = f"it can't be fetched: {error}, the last of {TRIES} times"
                fix = "run the same command again: it goes on from there"
                raise InputError(reason, where=address, fix=fix) from None
            time.sleep(WAIT * 2 ** (number - 1))
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            raise InputError(f"it can't be fetched: {reason}", where=address, fix=_FIX) from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that is none
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            reason = getattr(error, "reason", None) or error
            raise InputError(f"it can't be fetched ({reason})", where=address, fix=_FIX) from error
    raise AssertionError


def _name(address: str) -> str:
    """The file's name while it is fetched; readers recognise safetensors by it."""
    return "content.safetensors" if address.partition("?")[0].endswith(".safetensors") else "content"


def _once(address: str, place: Path) -> str | None:
    content, about = place / _name(address), place / "about.json"
    have, kept = _kept(content, about)
    if kept.get("whole"):
        return kept.get("said")
    headers = {"User-Agent": "selfalign", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": kept["validator"]}
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https", "ftp", "file"):
        raise ValueError(f"{parts.scheme or 'no'} scheme: it must begin with http:, https:, ftp: or file:")
    if parts.scheme == "file":  # a pipe or a device there would never end
        open_file(Path(urllib.request.url2pathname(parts.path))).close()
    redirects = _Redirects()
    try:
        opener = urllib.request.build_opener(redirects)
        with opener.open(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            if getattr(answer, "status", None) == 206 and not _goes_on(answer, have):
                content.unlink(missing_ok=True)
                raise _BrokenOff("the server sends another part of the file than it was asked for")
            going_on = getattr(answer, "status", None) == 206
            claimed = redirects.claimed or _sum(answer.headers.get(_LINKED))
            _receive(answer, content, about, have if going_on else 0)
            write_json(about, {"whole": True, "said": claimed})
            return claimed
    except urllib.error.HTTPError as error:
        if error.code == 416:  # it has no such part: another file, or one that is longer here than there
            content.unlink(missing_ok=True)
        if error.code in (408, 416, 425, 429) or error.code >= 500:
            raise _BrokenOff(f"the server answers {error.code} {error.reason}") from None
        raise
    except (TimeoutError, ConnectionError, http.client.IncompleteRead, http.client.RemoteDisconnected) as error:
        raise _BrokenOff(_reason(error)) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError | http.client.RemoteDisconnected):
            raise _BrokenOff(_reason(error.reason)) from None
        raise


def _receive(answer: Any, content: Path, about: Path, have: int) -> None:
    """Write an answer's bytes behind the first `have` of `content`. Raises `_BrokenOff` where it ends too early."""
    length = answer.headers.get("Content-Length") or ""
    total = have + int(length) if length.isascii() and length.isdigit() else None
    if not have:
        etag = answer.headers.get("ETag") or ""
        strong = etag if etag.startswith('"') else None
        content.unlink(missing_ok=True)  # no bytes of another file stand beside this one's validator
        write_json(about, {"validator": strong or answer.headers.get("Last-Modified")})
    bar = progress(what="fetching", unit="B", total=total, initial=have, scale=True)
    with open(content, "ab" if have else "wb") as file, bar:
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have != total:
        raise _BrokenOff(f"the answer ends after {have:,} of {total:,} bytes")


def _kept(content: Path, about: Path) -> tuple[int, dict[str, Any]]:
    """The number of bytes that a fetch can go on from, and the facts kept with them.

    The facts are the server's `validator` of the file's version, or `whole` if all bytes are there, and the sum that
    the server claimed.
    """
    try:
        kept, have = json.loads(about.read_text(encoding="utf-8")), content.stat().st_size
    except (OSError, ValueError):
        return 0, {}
    if not isinstance(kept, dict) or not (kept.get("whole") or isinstance(kept.get("validator"), str)):
        return 0, {}
    return have, kept


def _goes_on(answer: Any, have: int) -> bool:
    return bool(have) and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the answer ends too early"
    return str(error) or type(error).__name__


def _sum(header: str | None) -> str | None:
    found = (header or "").removeprefix("W/").strip('"')
    return found if _SUM.fullmatch(found) else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the sha256 that a redirect claims."""

    claimed: str | None = None

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, address: str) -> Any:
        self.claimed = _sum(headers.get(_LINKED)) or self.claimed
        return super().redirect_request(request, file, code, message, headers, address)
