"""Errors that are the user's to mend: the command line prints them as one line and exits with code 2."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something given from outside is wrong; the message says in one line what it was and what would be right.

    Attributes:
        said: whether another process of the run says it.
    """

    said = False


class ConfigError(UserError):
    """A configuration file, a ``--set`` option or an argument named by them is wrong.

    Args:
        message: what is wrong and what would be right.
        path: keys and indices that lead to the value in the configuration, if it came from one.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.path = path


class DataError(UserError):
    """A data set is missing, incomplete or not laid out as it should be."""


class TrainingError(UserError):
    """Training went where it cannot go on."""


class Interrupted(Exception):  # noqa: N818  (no error)
    """A signal stopped a run, which can be resumed; the command line exits with 128 + its number, as a shell does.

    Args:
        signum: of the signal.
        advice: how to go on.

    Attributes:
        said: whether another process of the run says it.
    """

    said = False

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}{advice and '; '}{advice}")
        self.signum = signum


def suggestion(name: object, valid: Iterable[str]) -> str:
    """Say which valid name is nearest to a wrong one, or list them all.

    >>> suggestion("temprature", ["temperature", "weight"])
    "; did you mean 'temperature'?"
    >>> suggestion("zzz", ["temperature", "weight"])
    '; valid: temperature, weight'
    """
    names = sorted(valid)
    if not names:
        return "; none is valid here"
    by_lower = {n.lower(): n for n in names}
    near = get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else f"; valid: {', '.join(names)}"
