"""How the report writes numbers and texts: rounded to what they can carry, with their unit, and without signs that act
on a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from smpq.files import SHARES, Interval


def shown(text: object) -> str:
    """Write a text of a model or a device. What moves a cursor or turns the direction of reading becomes a visible
    mark.
    """
    written = str(text)
    if written.isprintable():
        return written
    return "".join(
        letter if letter.isprintable() else " " if letter.isspace() else "\N{REPLACEMENT CHARACTER}"
        for letter in written
    )


def number(value: float | None) -> str:
    """Write a number with three to four significant digits; a dash where there is none."""
    if value is None:
        return "–"
    return signed(f"{value:.4g}" if abs(value) >= 10 else f"{value:.3g}")


def aligned(values: Iterable[float | None]) -> str:
    """Return the format that gives all these numbers the same decimals: three significant digits for the largest."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return f".{min(8, max(0, 2 - math.floor(math.log10(largest))))}f" if largest > 0 else ".3f"


def fixed(value: float | None, decimals: str = ".3f") -> str:
    """Write a number of a column; a dash where there is none."""
    return "–" if value is None else signed(format(value, decimals))


def span(bounds: Interval | None, decimals: str = ".3f") -> str:
    """Write an interval of a column; a dash where there is none."""
    return "–" if bounds is None else f"{fixed(bounds.low, decimals)} to {fixed(bounds.high, decimals)}"


def signed(text: str) -> str:
    """Write minus as the sign that is as wide as plus, not as a hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def magnitude(value: float) -> str:
    """Write a large count with k, M, G or T."""
    for factor, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def size(value: float) -> str:
    """Write bytes."""
    return f"{magnitude(value)}{'B' if value >= 1e3 else ' B'}"


def shape(sizes: Iterable[int]) -> str:
    """Write the sizes of one sample, as 3x224x224."""
    return "x".join(map(str, sizes)) or "one number"


def amount(value: float, unit: str) -> str:
    """Write what a limit is about, in its unit."""
    if unit in ("B", "bytes"):
        return size(value)
    return (
        f"{number(value)}{unit}"
        if unit in ("x", "")
        else f"{magnitude(value) if value >= 1e4 else number(value)} {unit}"
    )


def measure(mean: float, bounds: Interval, metric: str) -> str:
    """Write a mean of the metric with its interval: shares in percent."""
    if metric in SHARES:
        return f"{100 * mean:.2f} % ({100 * bounds.low:.2f} to {100 * bounds.high:.2f})"
    return signed(f"{mean:.4g} ({bounds.low:.4g} to {bounds.high:.4g})")


def change(value: float, metric: str, *, unit: bool = False) -> str:
    """Write a change of the metric with its sign: shares in points."""
    text = f"{100 * value:+.2f}{' points' if unit else ''}" if metric in SHARES else f"{value:+.3g}"
    return signed(text)


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
