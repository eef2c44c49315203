"""How long somebody waits for a better answer: so many seconds, or until Ctrl-C."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from calib.errors import UserError


class Patience:
    """Says when a search should end with the best that it has."""

    def __init__(self, seconds: float | None = None) -> None:
        """It is over `seconds` from now; None: when somebody asks. UserError for what is no time."""
        if seconds is not None and not (isinstance(seconds, (int, float)) and 0 < seconds < math.inf):
            raise UserError(f"seconds must be a number above zero, not {seconds!r}")
        self._end = None if seconds is None else time.monotonic() + seconds
        self._asked = False

    @property
    def limited(self) -> bool:
        """Whether somebody said after how many seconds it is over."""
        return self._end is not None

    def over(self) -> bool:
        """Whether it is."""
        return self._asked or (self._end is not None and time.monotonic() >= self._end)

    @contextmanager
    def interruptible(self, say: Callable[[str], None]) -> Iterator[None]:
        """Let the first Ctrl-C in the block end the patience, and the second one the process as usual.

        Where Ctrl-C is not heard, as in the background of a script, or has another meaning, it keeps that.
        """
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
            yield
            return

        def first(_number: int, _frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, usual)
            self._asked = True
            say("the search ends with the best that it has; Ctrl-C again stops at once")

        signal.signal(signal.SIGINT, first)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)
