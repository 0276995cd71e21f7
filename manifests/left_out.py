"""What a data set leaves out: gathered, refused together or listed with its reason in `left_out.jsonl`."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from manifests.errors import InputError
from manifests.files import canonical_json, write_text
from manifests.source import LeftOut

FILE = "left_out.jsonl"
_SHOWN = 10
_WIDTH = 85  # characters of an example
_ROW = re.compile(r"(.*?) ((?:row|line|file|images\[|annotations\[|\[|\(image).*)")
_KINDS = {
    "row": "broken row{}",
    "repeated": "repeated row{}",
    "caption": "caption{} without a word",
    "missing": "missing",
    "conflict": "contradiction{}",
}
T = TypeVar("T")


class Sieve:
    """Takes what can be used, and gathers the rest.

    Parameters
    ----------
    allowed : the kinds (`LeftOut.kind`) that are left out; the others are refused.
    listing : where everything that is refused is listed, if it doesn't fit into one message.
    """

    def __init__(self, allowed: Collection[str], listing: Path):
        self.allowed, self.listing = frozenset(allowed), Path(listing)
        self.items: list[LeftOut] = []
        with suppress(FileNotFoundError):  # of an earlier run
            self.listing.unlink()

    def add(self, kind: str, error: InputError, id: str | None = None) -> None:
        """One thing that can't be used."""
        self.items.append(LeftOut(kind, error, id))

    def usable(self, items: Iterable[T | LeftOut]) -> Iterator[T]:
        """Those of `items` that aren't left out."""
        for item in items:
            if isinstance(item, LeftOut):
                self.items.append(item)
            else:
                yield item

    def refuse(self) -> None:
        """Raise `InputError` where something was gathered that may not be left out: with the count and ten examples, or
        the one thing's own error."""
        wrong = [item for item in self.items if item.kind not in self.allowed]
        if not wrong:
            return
        first = wrong[0].error
        if len(wrong) == 1:
            raise InputError(first.what, where=first.where, fix=_fix(wrong)) from first
        file = _place(first)[0]
        shown = "; ".join(f"{_cut(error)}" for error in (item.error for item in wrong[:_SHOWN]))
        more = ""
        if len(wrong) > _SHOWN:
            write_text(self.listing, _lines(wrong))
            more = f"; all of them are listed in {self.listing}"
        raise InputError(f"{len(wrong):,} mistakes ({_counted(wrong)}): {shown}{more}", where=file, fix=_fix(wrong))

    def write(self, folder: Path) -> None:
        """List what is left out in `folder`: an object a line, with kind, file, row, id and reason."""
        write_text(Path(folder) / FILE, _lines(self.items))

    def summary(self) -> str:
        """How many of which kind are left out; empty where nothing is."""
        return f"{len(self.items):,} left out ({_counted(self.items)}): see {FILE}" if self.items else ""


def _counted(items: list[LeftOut]) -> str:
    counts = Counter(item.kind for item in items)
    return ", ".join(f"{count:,} {_KINDS[kind].format('s' * (count != 1))}" for kind, count in counts.items())


def _fix(items: list[LeftOut]) -> str:
    """What to do: the first error's own advice, or the keys that leave such things out."""
    kinds = {item.kind for item in items}
    keys = ["`source.missing: skip`"] * ("missing" in kinds)
    keys += ["`source.unreadable: skip`"] * bool(kinds & {"row", "repeated", "caption"})
    fixes = dict.fromkeys(item.error.fix for item in items)
    advice = items[0].error.fix if len(fixes) == 1 else "mend them"
    return f"{advice}, or set {' and '.join(keys)} to leave them out" if keys and keys[0] not in advice else advice


def _lines(items: Iterable[LeftOut]) -> str:
    lines = []
    for item in items:
        file, row = _place(item.error)
        reason = item.error.what
        lines.append(canonical_json({"kind": item.kind, "file": file, "row": row, "id": item.id, "reason": reason}))
    return "".join(f"{line}\n" for line in lines)


def _place(error: InputError) -> tuple[str, str]:
    """The file and the row that an error names."""
    found = _ROW.fullmatch(error.where)
    return (found[1], found[2]) if found else (error.where, "")


def _cut(error: InputError) -> str:
    """An error in few characters."""
    text = f"{_place(error)[1]} {error.what}".strip()
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 2]} …"
