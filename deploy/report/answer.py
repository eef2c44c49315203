"""An answer of the report, and how its sentences are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["yes", "no", "unknown", "note", "steps"]

_NAMED = 4


@dataclass(frozen=True)
class Answer:
    """A question, what the answer comes to, and the sentences; the first is the answer, unless all are steps to
    take.
    """

    question: str
    verdict: Verdict
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """What to do, and the command that does it; None where none does, or something has to be edited before."""

    sentence: str
    command: str | None = None


def some(names: Sequence[str]) -> str:
    """Name the first few, and count the rest."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def bare(text: str | None) -> str:
    """Return a text without the full stop that it may have."""
    return (text or "").strip().rstrip(".")


def sentence(text: str) -> str:
    """Return a text as a sentence."""
    return capital(bare(text)) + "."


def capital(text: str) -> str:
    """Return a text with a capital letter in front."""
    return text[:1].upper() + text[1:]
