"""Start programs whose answer to Ctrl-C does not depend on how the tests were started."""

from __future__ import annotations

import sys

_PROGRAM = "import os, signal, sys; signal.signal(signal.SIGINT, signal.{how}); os.execvp(sys.argv[1], sys.argv[1:])"


def hearing_interrupts(*command: object) -> list[str]:
    """Return a command that runs `command` with the system's own answer to SIGINT, which a job in the background of a script ignores."""
    return [sys.executable, "-c", _PROGRAM.format(how="SIG_DFL"), *map(str, command)]


def ignoring_interrupts(*command: object) -> list[str]:
    """Return a command that runs `command` as a job in the background of a script, which does not hear SIGINT."""
    return [sys.executable, "-c", _PROGRAM.format(how="SIG_IGN"), *map(str, command)]
