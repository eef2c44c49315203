"""Turn a float weight into integers: one file a method, chosen by name."""

from __future__ import annotations

from calib.choices import ROUNDINGS
from calib.errors import UserError
from calib.rounding.base import Moments, RoundWeight, rounding
from calib.rounding.gptq import round_gptq
from calib.rounding.nearest import round_nearest
from calib.rounding.own import own_rounding
from calib.rounding.tables import round_tables

__all__ = [
    "ROUNDINGS",
    "Moments",
    "RoundWeight",
    "own_rounding",
    "round_gptq",
    "round_nearest",
    "round_tables",
    "rounding",
    "rounding_from_name",
]


def rounding_from_name(name: str) -> RoundWeight:
    """Return a registered method; UserError lists the names."""
    if name not in ROUNDINGS:
        raise UserError(f"unknown rounding {name!r}: choose one of {', '.join(ROUNDINGS)}")
    return ROUNDINGS[name]
