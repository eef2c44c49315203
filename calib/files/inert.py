"""What stands for the parts of a pickle that are no data: names and calls that are written down, and never looked up or
made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_KEYS = (str, bytes, int, float, bool, type(None))


class WrongPickleError(ValueError):
    """Not a pickle that this module reads; the message says why."""


@dataclass(frozen=True, eq=False, slots=True)
class Named:
    """A function or class that the pickle names, as text: `numpy.ndarray`."""

    name: str


@dataclass(eq=False, slots=True)
class Call:
    """What the pickle wants to call, and with what; `state` is what it would give the result. Never called."""

    function: str
    arguments: tuple[object, ...]
    state: object = None


@dataclass(frozen=True, eq=False, slots=True)
class Outside:
    """Something that the pickle takes from elsewhere, by its persistent identifier."""

    key: object


def fill(target: object, items: list[Any]) -> None:
    """Put keys and values, in turn, into a dictionary; what a `Call` would be given is left out. WrongPickleError for
    any other target.
    """
    if isinstance(target, Call):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise WrongPickleError("it sets items of what is no dictionary")
    for key in items[::2]:
        if not isinstance(key, (*_KEYS, Call, Named)):  # hashing a tuple recurses
            raise WrongPickleError(f"a key of type {type(key).__name__}")
    target.update(zip(items[::2], items[1::2], strict=True))


def extend(target: object, items: list[Any]) -> None:
    """Append to a list; what a `Call` would be given is left out. WrongPickleError for any other target."""
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Call):
        raise WrongPickleError("it appends to what is no list")
