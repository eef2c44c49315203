"""A section of a report: what may stand in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


class Warned(str):
    """A word of a table that warns."""

    __slots__ = ()
    warns = True


@dataclass(frozen=True)
class Section:
    """A title, and what stands under it in this order; all of it may be missing.

    Columns are named, each with what stands in it: "word", "number", "text", "path" or "code". The last cell of a row
    with too few is a text over the columns that are left.
    """

    title: str
    note: str = ""
    figure: Markup = field(default_factory=Markup)
    caption: str = ""
    columns: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[str]] = ()
    text: str = ""
    items: Mapping[str, str] = field(default_factory=dict)
