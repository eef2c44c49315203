"""Formats that layers must have, or must not have, by patterns on their paths: what a person knows beforehand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from calib.errors import UserError
from calib.formats.format import Format, formats_from_text

if TYPE_CHECKING:  # settings are read without torch
    from calib.network.units import Unit
    from smpq.problem.policy import Group

_PIN = re.compile(r"(?P<pattern>[^=!]+?)\s*(?P<sign>!?=)\s*(?P<format>[^=!,]+)")
_FLOAT = "float"
"""Stands for the target's own float format."""
_SHOWN = 5


@dataclass(frozen=True)
class Pin:
    """Layers whose path matches `pattern` must have a format, or must not where it `forbids` it; None is the target's
    float format.

    The pattern is a glob: `*` stands for any text, dots too, `?` for one character, `[0-3]` for one of several.
    """

    text: str
    pattern: str
    forbids: bool
    format: Format | None

    def matches(self, unit: Unit) -> bool:
        """Whether it is about a unit."""
        return any(fnmatchcase(path, self.pattern) for path in (unit.path, *unit.aliases))


def pin_from_text(text: str) -> Pin:
    """Read `head*=fp16` or `blocks.[0-3].*!=w4a16b128`; UserError when it is neither."""
    found = _PIN.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"{text!r} pins nothing: write a pattern of layers and a format, as 'head*=float' or "
            "'blocks.[0-3].*!=w4a16b128'"
        )
    spelt = found["format"].strip().lower()
    chosen = None if spelt == _FLOAT else formats_from_text(spelt)[0]
    return Pin(text.strip(), found["pattern"].strip(), found["sign"] == "!=", chosen)


def pinned(group: Group, formats: Sequence[Format], reference: Format, pins: Sequence[Pin]) -> tuple[Format, ...]:
    """Return the formats that the pins leave a group.

    1. Of several pins that give a unit a format, the last one counts.
    2. Units of a group share a format: what is pinned for one of them is for all. UserError where that contradicts
       itself.
    3. A format that is pinned need not be among `formats`. UserError where none is left.
    """
    given: dict[Format, str] = {}
    for unit in group.units:
        last = [pin for pin in pins if not pin.forbids and pin.matches(unit)][-1:]
        given.update({pin.format or reference: pin.text for pin in last})
    if len(given) > 1:
        members = ", ".join(unit.path for unit in group.units)
        raise UserError(f"{members} share a format, and {' and '.join(map(repr, given.values()))} pin several")
    forbidden = {
        pin.format or reference: pin.text for pin in pins if pin.forbids and any(map(pin.matches, group.units))
    }
    left = tuple(chosen for chosen in (given or formats) if chosen not in forbidden)
    if not left:
        raise UserError(f"no format is left for {group.name}: {' and '.join(map(repr, forbidden.values()))} leave none")
    return left


def check_pins(groups: Sequence[Group], pins: Sequence[Pin]) -> None:
    """Raise UserError for a pin that no layer matches: it is mistyped."""
    units = [unit for group in groups for unit in group.units]
    for pin in pins:
        if not any(map(pin.matches, units)):
            known = ", ".join(unit.path for unit in units[:_SHOWN]) + (", ..." if len(units) > _SHOWN else "")
            raise UserError(f"{pin.text!r} pins nothing: no layer matches {pin.pattern!r}; there are {known}")
