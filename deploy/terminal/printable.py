"""Text from elsewhere that may be shown on a terminal."""

from __future__ import annotations

LONGEST = 500
"""Characters of one line from a device that are shown."""


def printable(text: str, longest: int = LONGEST) -> str:
    """Return text as one line of at most `longest` characters.

    Line breaks and tabs become blanks. Control characters, escape sequences and marks that turn the direction of
    writing become question marks.
    """
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return "".join(letter if letter.isprintable() else " " if letter in "\t\n\r" else "?" for letter in cut)
