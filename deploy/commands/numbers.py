"""The types of options: numbers and paths as a person writes them, within limits that every command can live with."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import click

MOST = 10**9
"""Nothing is counted beyond this, and no number is larger; products of a few options stay far from overflowing."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_SHOWN = 40
_LONGEST_NAME, _LONGEST_PATH = 255, 4000


class Whole(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click only
    """A whole number in plain digits, at most `most`, and at least `least` where the settings that it is for do not
    check that.
    """

    name = "integer"

    def __init__(self, most: int = MOST, least: int | None = None) -> None:
        self.most = most
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        text = str(value).strip()
        number = int(text) if _WHOLE.fullmatch(text) else None
        if number is None:
            self.fail(f"{_shown(text)} is not a valid integer.", param, ctx)
        if number > self.most:
            self.fail(f"{_shown(text)} is too large: it may be {self.most} at most.", param, ctx)
        if self.least is not None and number < self.least:
            self.fail(f"{_shown(text)} is too small: it must be at least {self.least}.", param, ctx)
        return number


class Decimal(click.ParamType):  # type: ignore[type-arg]  # see Whole
    """A finite number in plain digits whose magnitude is at most `MOST`."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; minus zero is zero."""
        text = str(value).strip()
        if not _DECIMAL.fullmatch(text):
            self.fail(f"{_shown(text)} is not a valid number.", param, ctx)
        number = float(text)
        if not (math.isfinite(number) and abs(number) <= MOST):
            self.fail(f"{_shown(text)} is too large: it may be {MOST} at most.", param, ctx)
        return number + 0.0


class Place(click.ParamType):  # type: ignore[type-arg]  # see Whole
    """A path. An empty one would be the current directory, which nobody means by it."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        text = str(value)
        if not text.strip():
            self.fail("the path is empty; write . for the current directory.", param, ctx)
        encoded = os.fsencode(text)
        if b"\0" in encoded or len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
            self.fail(f"{_shown(text)} cannot be a path: it is too long, or holds a zero byte.", param, ctx)
        return Path(text)


WHOLE, DECIMAL, PLACE = Whole(), Decimal(), Place()
SEED, WORKERS = Whole(2**32 - 1), Whole(10**4)
BATCH, FURTHER_BATCH = Whole(10**5), Whole(10**5, least=1)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
