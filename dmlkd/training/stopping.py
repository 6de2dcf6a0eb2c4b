"""Stopping a run when a signal asks for it, at a moment that can be gone on from."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dmlkd.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has asked for the end.

    Args:
        agreed: from a number to the largest that any process of the run has: all of them ask at the same moments.

    Attributes:
        asked: the signal's number; None: none came to this process.
    """

    def __init__(self, agreed: Callable[[int], int] = int) -> None:
        self.asked: int | None = None
        self._agreed = agreed
        self._deferred = False
        self._listening = False

    def heard(self) -> int | None:
        """The signal that asked for the end, in whatever process; None: none came."""
        return self._agreed(self.asked or 0) or None

    def now(self) -> None:
        """Stop here if that was asked for.

        Raises:
            Interrupted: naming the signal.
        """
        if (signum := self.heard()) is not None:
            raise Interrupted(signum)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT (Ctrl-C) and SIGTERM as :class:`~dmlkd.errors.Interrupted`, at once but in :meth:`deferred`."""
        if threading.current_thread() is not threading.main_thread():  # only there Python allows handlers
            yield
            return
        before = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        self._listening = True
        self.listen_again()
        try:
            yield
        finally:
            self._listening = False
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def listen_again(self) -> None:
        """Take the signals back from whoever took them since; nothing outside :meth:`listening`."""
        if self._listening:
            for signum in _SIGNALS:
                signal.signal(signum, self._hear)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Wait with it until :meth:`now` is called; a second Ctrl-C waits no longer."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _hear(self, signum: int, _: FrameType | None) -> None:
        again = self.asked is not None
        self.asked = signum
        if not self._deferred or (again and signum == signal.SIGINT):
            raise Interrupted(signum)
