"""Elements of SVG. What is not markup already is escaped, and shown as `wording.shown` does."""

from __future__ import annotations

import math
from collections.abc import Iterable

from markupsafe import Markup, escape

from deploy.report.wording import shown

LETTER = 6.3
"""Width of a letter at the 11 px that labels are set in, generously."""
_NAMES = {"class_": "class", "text_anchor": "text-anchor", "aria_label": "aria-label"}


def element(tag: str, *inside: str, **attributes: str | float) -> Markup:
    """Return an element. Floats are pixels; attributes that are empty texts are left out."""
    given = "".join(f' {_NAMES.get(name, name)}="{_value(value)}"' for name, value in attributes.items() if value != "")
    content = "".join(part if isinstance(part, Markup) else escape(shown(part)) for part in inside)
    return Markup(f"<{tag}{given}>{content}</{tag}>")  # noqa: S704 - all parts of it are escaped


def picture(
    width: float, height: float, name: str, parts: Iterable[str], role: str = "img", **attributes: str
) -> Markup:
    """Return the picture that holds `parts`."""
    box = f"0 0 {math.ceil(width)} {math.ceil(height)}"
    return element(
        "svg", *parts, width=round(width), height=round(height), viewBox=box, role=role, aria_label=name, **attributes
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a line of a class."""
    return element("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def label(x: float, y: float, text: str, kind: str = "label", anchor: str = "start", turned: int = 0) -> Markup:
    """Return a text of a class, turned by degrees around its place."""
    turn = f"rotate({turned} {x:.1f} {y:.1f})" if turned else ""
    return element("text", text, class_=kind, x=x, y=y, text_anchor=anchor, transform=turn)


def hinted(tag: str, hint: str, **attributes: str | float) -> Markup:
    """Return a shape that tells what it is when it is pointed at, or read aloud."""
    return element(tag, element("title", hint), **attributes)


def _value(value: str | float) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(shown(value))
