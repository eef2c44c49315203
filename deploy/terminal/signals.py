"""Signals that ask this process to end: they become an exception, so that what a run has left elsewhere is taken
away.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_DIED_OF_SIGNAL = 128


class Stopped(SystemExit):
    """The process was asked to end by a signal; its exit code is 128 and the number, as a shell has it."""

    def __init__(self, number: int) -> None:
        super().__init__(_DIED_OF_SIGNAL + number)
        self.name = signal.Signals(number).name


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise Stopped in the main thread when SIGTERM or SIGHUP comes. A signal that was ignored stays so, as SIGHUP
    under nohup.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # Python lets no other thread set handlers
    taken = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    handler = _Handler()
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def deferred() -> Iterator[None]:
    """Let these signals wait until the block ends; then Stopped is raised for the last of them."""
    handler = signal.getsignal(signal.SIGTERM)
    if not isinstance(handler, _Handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler.wait()
    try:
        yield
    finally:
        handler.go_on()


class _Handler:
    """Raises Stopped, or remembers the signal while it has to wait."""

    def __init__(self) -> None:
        self._waits = False
        self._came: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if not self._waits:
            raise Stopped(number)
        self._came = number

    def wait(self) -> None:
        """Only remember signals from now on."""
        self._waits = True

    def go_on(self) -> None:
        """Raise again from now on; Stopped for what came meanwhile."""
        self._waits, came, self._came = False, self._came, None
        if came is not None:
            raise Stopped(came)
