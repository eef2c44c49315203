"""Axes of a plot, numbers that find room beside their points, and legends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup

from deploy.report.svg import LETTER, label, line
from deploy.report.wording import signed
from smpq.files import Interval

_FARTHEST = 1e300
"""What is farther from zero is drawn here: the width of a range stays finite."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom."""


@dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to pixels between `start` and `stop`; values outside stay at the edge."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + (self.stop - self.start) * min(1.0, max(0.0, share))

    def ticks(self, wanted: int = 5) -> list[float]:
        """Return about this many round values inside the range."""
        rough = (self.high - self.low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.75)
        first = math.ceil(self.low / step - 1e-9)
        return [round(index * step, 12) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def ends(interval: Interval | None) -> Sequence[float]:
    """Return both ends, nothing of no interval."""
    return () if interval is None else (interval.low, interval.high)


def fit(values: Iterable[float], start: float, stop: float, least: float = 0.0) -> Scale:
    """Fit a scale around values with a margin, at least `least` wide; a single value gets room on both sides."""
    drawn = [min(max(value, -_FARTHEST), _FARTHEST) for value in values]
    low, high = min(drawn), max(drawn)
    spread = max(high - low, least, 1e-6 * max(abs(low), abs(high)), 1e-12)
    middle, half = (low + high) / 2, spread * 0.56
    return Scale(middle - half, middle + half, start, stop)


def free_place(x: float, y: float, width: float, boxes: list[Box], frame: Box) -> tuple[float, float] | None:
    """Find a place for a number near its point that covers no box, and add it to them; None when it is too crowded."""
    for distance in (11.0, 18.0, 28.0):
        for turn in (45, -45, 135, -135, 20, -20, 160, -160, 70, -70, 110, -110):
            right = x + distance * math.cos(math.radians(turn)) + (0 if abs(turn) > 90 else width)
            middle = y - distance * math.sin(math.radians(turn))
            box = (right - width - 1, middle - 5, right + 1, middle + 5)
            inside = frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if inside and not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
                return right - width, middle + 4
    return None


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def frame_of(x_scale: Scale, y_scale: Scale, x_title: str, y_title: str) -> list[Markup]:
    """Draw the grid with its numbers, and the names of the axes."""
    parts = []
    for tick in y_scale.ticks():
        parts += horizontal(y_scale(tick), x_scale.start, x_scale.stop, signed(f"{tick:g}"))
    for tick in x_scale.ticks():
        parts.append(line(x_scale(tick), y_scale.start, x_scale(tick), y_scale.stop, "grid"))
        parts.append(label(x_scale(tick), y_scale.start + 16, f"{tick:g}", anchor="middle"))
    parts.append(label((x_scale.start + x_scale.stop) / 2, y_scale.start + 38, x_title, "title", "middle"))
    y = (y_scale.start + y_scale.stop) / 2
    parts.append(label(16, y, y_title, "title", "middle", turned=-90))
    return parts


def legend_of(entries: Sequence[tuple[str, str]], x: float, y: float) -> list[Markup]:
    """Draw lines of a class with what they stand for, in a row."""
    parts = []
    for kind, text in entries:
        parts += [line(x, y, x + 22, y, kind), label(x + 28, y + 4, text)]
        x += 28 + len(text) * LETTER + 26
    return parts


def horizontal(y: float, left: float, right: float, name: str, kind: str = "grid") -> list[Markup]:
    """Draw a line across with its number."""
    return [line(left, y, right, y, kind), label(left - 8, y + 4, name, anchor="end")]
