"""The one exception that means: the person, not the program, has something to change."""

from __future__ import annotations


class UserError(Exception):
    """A wrong input. The message says what was wrong and what to do; the CLI prints it without a traceback and exits
    with 2.
    """
