"""Values that a declared field cannot have: just outside its limits, of other types, empty, not finite, huge."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from calib.declared import APath, Field, Interval, Matching, OneOf, Parsed

PLAIN_TEXTS = ("", " ", "\t")
NO_NUMBERS = (
    *PLAIN_TEXTS, "nan", "inf", "-inf", "infinity", "٣", "1٠", "1_0", "0x10", "1,5", "1e", "９", "x" * 5000, "--", "½",
)  # fmt: skip
HUGE = ("1" * 5000, "1e308", "9" * 30, str(10**30))
WRONG_TYPES: Mapping[type, tuple[Any, ...]] = {
    int: ("1", 1.5, True, b"1", (1,), math.nan, math.inf, -math.inf, 10**400),
    float: ("1", True, b"1", (1.0,), math.nan, math.inf, -math.inf, 10**400, 1e308),
    bool: ("yes", 1, 0.0, ()),
    str: (1, 0.5, True, b"x", ("x",)),
}
_UNKNOWN = ("no such name", "é", "x" * 5000)


def numbers_outside(field: Field) -> tuple[Any, ...]:
    """The numbers next to the ends of a field's interval that do not belong to it."""
    limits = field.declared.limits
    if not isinstance(limits, Interval):
        return ()
    if field.kind is int:
        return (int(limits.low) - 1, int(limits.high) + 1)
    below = limits.low if limits.above else math.nextafter(limits.low, -math.inf)
    above = limits.high if limits.below else math.nextafter(limits.high, math.inf)
    return (float(below), float(above), -1e9)


def texts_outside(field: Field) -> Iterator[str]:
    """Texts that the option of a field must refuse."""
    limits = field.declared.limits
    if field.kind in (int, float):
        yield from NO_NUMBERS
        yield from HUGE
        yield from map(repr, numbers_outside(field))
        if field.kind is int:
            yield from ("1.5", "1e3")
    elif isinstance(limits, APath):
        yield from (*PLAIN_TEXTS, "x" * 300, "x/" * 3000)
    elif isinstance(limits, OneOf):
        yield from (*PLAIN_TEXTS, *_UNKNOWN, next(iter(limits.names)).upper())
    elif isinstance(limits, Parsed):
        yield from (" ", "\t", *_UNKNOWN)
    elif isinstance(limits, Matching):
        yield from PLAIN_TEXTS
        yield from (text for text in ("cuda:", "cuda:٣", *_UNKNOWN) if not limits.allows(text))


def values_outside(field: Field) -> Iterator[Any]:
    """Values that the settings class of a field must refuse."""
    if not field.optional:
        yield None
    wrong = (*WRONG_TYPES[field.kind], *numbers_outside(field))
    if field.kind is str and field.declared.limits is not None:
        wrong += tuple(texts_outside(field))
    if field.many:
        yield from ((value,) for value in wrong)
        yield [field.kind()]
    else:
        yield from wrong
