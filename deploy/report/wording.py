"""How the report writes numbers: rounded to what they can carry, with their unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

_SHARES = ("top-1", "top-5", "accuracy")
"""Metrics that are shares of samples: written in percent, their changes in points."""


def finite(value: Any) -> float | None:
    """Return a number that means something, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def interval(bounds: Any, value: float) -> tuple[float, float]:
    """Return the two ends of an interval, or the value twice where there is none."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        return value, value
    low, high = finite(bounds[0]), finite(bounds[1])
    return (value if low is None else low), (value if high is None else high)


def number(value: Any) -> str:
    """Write a number with three to four significant digits; a dash where there is none."""
    known = finite(value)
    if known is None:
        return "–"
    return signed(f"{known:.4g}" if abs(known) >= 10 else f"{known:.3g}")


def aligned(values: Iterable[Any]) -> str:
    """Return the format that gives all these numbers the same decimals: three significant digits for the largest."""
    largest = max((abs(known) for value in values if (known := finite(value)) is not None), default=0.0)
    return f".{min(8, max(0, 2 - math.floor(math.log10(largest))))}f" if largest > 0 else ".3f"


def fixed(value: Any, decimals: str = ".3f") -> str:
    """Write a number of a column; a dash where there is none."""
    known = finite(value)
    return "–" if known is None else signed(format(known, decimals))


def span(bounds: Any, decimals: str = ".3f") -> str:
    """Write an interval of a column; a dash where there is none."""
    return "–" if bounds is None else f"{fixed(bounds[0], decimals)} to {fixed(bounds[1], decimals)}"


def signed(text: str) -> str:
    """Write minus as the sign that is as wide as plus, not as a hyphen."""
    return text.replace("-", "\N{MINUS SIGN}")


def magnitude(value: Any) -> str:
    """Write a large count with k, M, G or T."""
    known = finite(value)
    if known is None:
        return "–"
    for factor, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(known) >= factor:
            return f"{known / factor:.3g}{suffix}"
    return f"{known:.3g}"


def size(value: Any) -> str:
    """Write bytes."""
    return "–" if finite(value) is None else f"{magnitude(value)}{'B' if value >= 1e3 else ' B'}"


def amount(value: Any, unit: str) -> str:
    """Write what a limit is about, in its unit."""
    if unit in ("B", "bytes"):
        return size(value)
    return (
        f"{number(value)}{unit}" if unit in ("x", "") else f"{magnitude(value) if abs(value or 0) >= 1e4 else number(value)} {unit}"
    )


def measure(mean: Any, bounds: Any, metric: str) -> str:
    """Write a mean of the metric with its interval: shares in percent."""
    known = finite(mean)
    if known is None:
        return "–"
    low, high = interval(bounds, known)
    if metric in _SHARES:
        return f"{100 * known:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
    return signed(f"{known:.4g} ({low:.4g} to {high:.4g})")


def change(value: float, metric: str, *, unit: bool = False) -> str:
    """Write a change of the metric with its sign: shares in points."""
    text = f"{100 * value:+.2f}{' points' if unit else ''}" if metric in _SHARES else f"{value:+.3g}"
    return signed(text)


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
