"""Stopping a run when a signal asks for it, at a moment that can be gone on from."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dmlkd.errors import Interrupted


class Stop:
    """Whether a signal has asked for the end.

    Attributes:
        asked: the signal's number; None: none came.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._deferred = False

    def now(self) -> None:
        """Stop here if that was asked for.

        Raises:
            Interrupted: naming the signal.
        """
        if self.asked is not None:
            raise Interrupted(self.asked)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT (Ctrl-C) and SIGTERM as :class:`~dmlkd.errors.Interrupted`, at once but in :meth:`deferred`."""
        if threading.current_thread() is not threading.main_thread():  # only there Python allows handlers
            yield
            return
        before = {signum: signal.signal(signum, self._hear) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

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
