"""Turn a float weight into integers: one file a method, chosen by name."""

from __future__ import annotations

from calib.choices import ROUNDINGS
from calib.errors import UserError
from calib.rounding.base import Moments, RoundWeight, rounding
from calib.rounding.gptq import round_gptq
from calib.rounding.nearest import round_nearest

__all__ = ["ROUNDINGS", "Moments", "RoundWeight", "round_gptq", "round_nearest", "rounding", "rounding_from_name"]


def rounding_from_name(name: str) -> RoundWeight:
    """Return a registered method; UserError lists the names."""
    if name not in ROUNDINGS:
        raise UserError(f"unknown rounding {name!r}: choose one of {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]
