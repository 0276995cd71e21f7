"""The catalogue of detectors: what `selfalign detectors` shows, and fetching one with the lines for params.yaml."""

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from extract.vision.catalogue import CATALOGUE, COCO, Entry, require_published, require_readable
from extract.vision.fetching import fetching
from extract.vision.weights import is_address, keep, unfinished
from manifests.errors import InputError
from manifests.files import sha256, write_text

_TITLE = re.compile(rb"<title[^>]*>(.{0,200}?)</title>", re.S | re.I)
_START = 4096


def listing() -> str:
    """The catalogue, an entry in two lines."""
    width = max(map(len, CATALOGUE))
    lines = []
    for name, entry in CATALOGUE.items():
        lines += [f"{name:<{width}}  {entry.what}", f"{'':<{width}}  {_figures(entry)}"]
    end = (
        "`selfalign detectors show NAME` has addresses, licences and settings; `selfalign detectors fetch NAME` fetches"
    )
    return "\n".join([*lines, "", end])


def _figures(entry: Entry) -> str:
    classes = f"{entry.classes:,} classes" + (f", {entry.attributes} attributes" if entry.attributes else "")
    size = f"; {entry.megabytes} MB" if entry.megabytes else ""
    cost = f"; {entry.seconds:g} s a picture" if entry.seconds else ""
    return f"{classes}; features of {entry.dim:,}{size}{cost}"


def described(name: str) -> str:
    """All that the catalogue has of an entry. Raises `InputError` for a name that it hasn't."""
    entry = _entry(name)
    published = "nothing" if entry.published is None else f"the start of its {entry.published[0]}, {entry.published[1]}"
    facts = {
        "what": entry.what,
        "figures": _figures(entry) + (" of one core (640 x 480)" if entry.seconds else ""),
        "address": entry.address,
        "published": published,
        "licence": entry.licence,
        "settings": f"from {entry.source}",
        "names": ", ".join(sorted(set(entry.names.values()) - {COCO})),
        "note": entry.note,
    }
    lines = [f"{key:<10} {value}" for key, value in facts.items() if value]
    params = _params(entry.detector, entry.address, "<what `selfalign detectors fetch` prints>", entry, {})
    return "\n".join([*lines, "", params])


def fetch(name: str, confirm: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """Fetch an entry of the catalogue, or any address, check it, and say the lines for params.yaml.

    confirm : decides whether to keep a file without a published sum; it may raise `Undecided`. say : prints a line.

    Raises
    ------
    InputError : an unknown name, an address that doesn't answer, a file that isn't a checkpoint or not to be kept. Also
        another sum than the published one, and weights that don't fit the entry (the message says where they are kept).
    """
    entry = None if is_address(name) else _entry(name)
    address = entry.address if entry else name
    with fetching(address, unfinished()) as fetched:
        _require_checkpoint(fetched.path, address)
        digest = sha256(fetched.path)
        size = fetched.path.stat().st_size
        say(f"sha256   {digest}")
        agrees = require_published(entry, fetched.path, address, fetched.claimed, digest)
        if agrees is None and not confirm(f"Nothing is published to hold these {size:,} bytes against. Keep them?"):
            fix = "answer yes, or give --yes, once you trust where they are from"
            raise InputError("what was fetched is not kept", where=address, fix=fix)
        say(f"checked  {agrees or 'against nothing: the sum is what you vouch for'}")
        path = keep(fetched.path, address, digest)
    say(f"weights  {path} ({size:,} bytes)")
    if entry is None:
        say(_params({"name": "rcnn"}, address, digest, None, {}))
        return
    require_readable(entry, path, digest)
    say(f"read     {_figures(entry)}")
    names = {key: _names(key, source, path.parent, say) for key, source in entry.names.items()}
    say("")
    say(_params(entry.detector, address, digest, entry, {key: str(file) for key, file in names.items() if file}))


def _entry(name: str) -> Entry:
    if name not in CATALOGUE:
        close = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.4)
        near = f" (did you mean {close[0]!r}?)" if close else ""
        fix = "give a name of `selfalign detectors`, or an address that begins with https:"
        raise InputError(f"the catalogue has no {name!r}{near}", where="selfalign detectors", fix=fix)
    return CATALOGUE[name]


def _require_checkpoint(file: Path, address: str) -> None:
    """Raises `InputError` that says what came instead of a checkpoint."""
    with open(file, "rb") as content:
        start = content.read(_START)
    if not start:
        raise InputError("the answer is empty", where=address, fix="look at the address in a browser")
    if start.lstrip().startswith(b"<"):
        title = _TITLE.search(start)
        called = f" called {' '.join(title[1].decode('utf-8', 'replace').split())!r}" if title else ""
        fix = "look at it in a browser: the file may have moved, or ask for a login"
        raise InputError(f"what came is a page{called}, not a checkpoint", where=address, fix=fix)
    from extract.vision.rcnn.checkpoint import read_state  # torch

    try:
        read_state(file)
    except InputError as error:
        message = f"what came is {error.what}" if error.what.startswith("not ") else f"what came {error.what}"
        raise InputError(message, where=address, fix="look at the address in a browser") from None


def _names(key: str, source: str, folder: Path, say: Callable[[str], None]) -> Path | None:
    """The file of an entry's names; None, which is said, where they can't be had."""
    file = folder / f"{key}.txt"
    if source == COCO:
        from extract.vision.detectors.torchvision import coco_names  # torch

        write_text(file, "".join(f"{name}\n" for name in coco_names() if name != "N/A"))
        return file
    try:
        with fetching(source, unfinished()) as fetched:
            write_text(file, fetched.path.read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError) as error:
        say(f"names    no {key}: {error}")
        return None
    return file


def _params(
    detector: Mapping[str, Any], address: str, digest: str, entry: Entry | None, names: Mapping[str, str]
) -> str:
    """The lines for a data set's `regions` in params.yaml."""
    own = {"name": detector["name"], "weights": address, "sha256": digest, **detector, **names}
    regions = {"detector": own, "selection": dict((entry or CATALOGUE["vg-hub"]).selection)}
    text = yaml.safe_dump({"regions": regions}, sort_keys=False, width=10**6, default_flow_style=False)
    return textwrap.indent(text.rstrip(), "    ")
