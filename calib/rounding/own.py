"""Roundings of number types that have one of their own: `--rounding` says nothing about them."""

from __future__ import annotations

from collections.abc import Callable

from calib.formats.number_type import NumberType
from calib.rounding.base import RoundWeight

_OWN: dict[type[NumberType], RoundWeight] = {}


def rounds(type_: type[NumberType]) -> Callable[[RoundWeight], RoundWeight]:
    """Register the rounding of a family of number types: a function with the signature of RoundWeight, in a file of its
    own that `calib.rounding` imports.
    """

    def register(function: RoundWeight) -> RoundWeight:
        _OWN[type_] = function
        return function

    return register


def own_rounding(type_: NumberType) -> RoundWeight | None:
    """Return the rounding that a number type has of its own, or None."""
    return _OWN.get(type(type_))
