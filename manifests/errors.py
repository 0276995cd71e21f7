"""The one error that every floor raises for something a user can mend."""

import re
from functools import partial
from typing import Any

_LONGEST = 1000  # characters of what is wrong: a damaged file can quote itself at any length


class InputError(ValueError):
    """Something in the user's files or parameters is wrong.

    The command line prints it without a traceback, so its three parts must say everything.

    Parameters
    ----------
    what : what is wrong, a sentence without its full stop.
    where : the place: a file, with its row, line or key where there is one.
    fix : what to do about it, an imperative without its full stop.
    """

    def __init__(self, what: str, *, where: object, fix: str):
        # One line, whatever a library or a file says.
        what = re.sub(r"\s*[\r\n]\s*", " ", what.strip())
        if len(what) > _LONGEST:
            what = f"{what[: _LONGEST * 4 // 5]} … {what[-_LONGEST // 5 :]}"
        super().__init__(f"{where}: {what}. Fix: {fix}.")
        self.what, self.where, self.fix = what, str(where), fix

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), where=self.where, fix=self.fix), (self.what,)


class DiskFull(InputError):
    """There is no room for a file: the same holds for whatever else is to be written there."""
