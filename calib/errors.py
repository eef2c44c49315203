"""The one exception that means: the person, not the program, has something to change."""

from __future__ import annotations


class UserError(Exception):
    """A wrong input. The message says what was wrong and what to do; the CLI prints it without a traceback and exits
    with 2.
    """


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says, the name of its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
