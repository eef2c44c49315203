"""Which block of a weight has which width, where the type of a weight leaves it open: one file a rule."""

from __future__ import annotations

from calib.choices import WIDTH_RULES
from calib.errors import UserError
from calib.rounding.widths.base import ChooseWidths, width_rule

__all__ = ["WIDTH_RULES", "ChooseWidths", "width_rule", "width_rule_from_name"]


def width_rule_from_name(name: str) -> ChooseWidths:
    """Return a registered rule; UserError lists the names."""
    if name not in WIDTH_RULES:
        raise UserError(f"unknown width rule {name!r}: choose one of {', '.join(WIDTH_RULES)}")
    return WIDTH_RULES[name]
