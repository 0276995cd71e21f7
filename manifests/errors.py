"""The one error that every floor raises for something a user can mend."""

from functools import partial
from typing import Any


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
        super().__init__(f"{where}: {what}. Fix: {fix}.")
        self.what, self.where, self.fix = what, str(where), fix

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), where=self.where, fix=self.fix), (self.what,)


class DiskFull(InputError):
    """There is no room for a file: the same holds for whatever else is to be written there."""
