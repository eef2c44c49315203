"""Text from elsewhere on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.terminal.printable import printable
from deploy.terminal.progress import Progress


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("measured a: 0.5x", "measured a: 0.5x"),
        ("größer 東京 µs", "größer 東京 µs"),
        ("a\x1b[2Jb\x07", "a?[2Jb?"),
        ("one\ttwo\nthree\r", "one two three "),
        ("\u202egnirts \u2066\u200b\ufeff\x9b", "?gnirts ????"),
        ("\ud800", "?"),
        ("x" * 600, "x" * 500 + "..."),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_progress_shows_no_control_characters():
    shown = io.StringIO()
    progress = Progress(Console(file=shown, width=80))
    progress.say("a\x1b[2J")
    progress.warn("b\x1b]0;title\x07")
    assert shown.getvalue() == "a?[2J\nwarning: b?]0;title?\n"
