"""Start programs whose answer to signals does not depend on how the tests were started."""

from __future__ import annotations

import sys

_PROGRAM = """
import os, signal, sys
for name in ("SIGINT", "SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
for name in {ignored}:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def hearing_signals(*command: object) -> list[str]:
    """Return a command that runs `command` with the system's own answers to signals.

    A job in the background of a script ignores SIGINT, one under nohup SIGHUP, and so do all processes that they start.
    """
    return [sys.executable, "-c", _PROGRAM.format(ignored=()), *map(str, command)]


def ignoring_hangups(*command: object) -> list[str]:
    """Return a command that runs `command` as under nohup, where it does not hear SIGHUP."""
    return [sys.executable, "-c", _PROGRAM.format(ignored=("SIGHUP",)), *map(str, command)]
