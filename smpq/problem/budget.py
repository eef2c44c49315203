"""What the engine may cost, as a person writes it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from calib.errors import UserError

_UNITS: dict[str, dict[str, float]] = {
    "latency": {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3},
    "throughput": {"": 1.0, "k": 1e3, "M": 1e6},
    "size": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "avg_bits": {"": 1.0},
    "bops": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "drop": {"": 1.0},
    "kl": {"": 1.0},
}
"""What is limited -> suffix -> factor to the unit that it is counted in: milliseconds, samples a second, bytes, bits,
bit operations, points of the task's metric, nats.
"""
COSTS = tuple(_UNITS)
LOSSES = ("drop", "kl")
"""Limits on what the network may lose, and not on what its engine costs."""

_NUMBER = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)(?P<suffix>[A-Za-z]*)")
_EXAMPLE = (
    "write for example latency=0.65x, latency=1.5ms, throughput=500/s, size=0.2x, size=200kB, avg_bits=3.5, bops=2G, "
    "drop=0.5, kl=0.02"
)
_SMALLEST, _LARGEST = 1e-9, 1e30
"""Of a limit in the unit of its cost, or as a fraction: nothing real is beyond, and the solver's numbers stay within
reach.
"""


@dataclass(frozen=True)
class Limit:
    """The most that one cost may be: in the unit of the cost (ms, bytes, bits, bit operations), or a fraction of the
    float model. Or the most that the network may lose: points of the metric, a fraction of the float model's metric,
    or nats of divergence from its output.
    """

    cost: str
    value: float
    relative: bool

    def absolute(self, float_cost: float) -> float:
        """Return the limit in the unit of the cost, given what the float model costs."""
        return self.value * float_cost if self.relative else self.value

    def ratio(self, float_cost: float) -> float:
        """Return the limit as a fraction of the float model, given what that costs."""
        return self.value if self.relative else self.value / float_cost

    def __str__(self) -> str:
        """Write all digits: what is read back is the same limit."""
        unit = "x" if self.relative else {"latency": "ms", "size": "B"}.get(self.cost, "")
        return f"{self.cost}={repr(self.value).removesuffix('.0')}{unit}"


@dataclass(frozen=True)
class Budget:
    """One or several limits that hold at once."""

    limits: tuple[Limit, ...]

    @classmethod
    def from_text(cls, text: str, batch: int = 1) -> Budget:
        """Parse `size=0.2x,latency=1.5ms,...`; UserError says which part is wrong and how to write it.

        A throughput, in samples a second, is a limit on the latency of `batch` samples: it is the least, not the most.
        """
        if not isinstance(text, str):
            raise UserError(f"the budget must be a text, not {text!r}: {_EXAMPLE}")
        limits: dict[str, Limit] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            limit = _limit_from_text(part, batch)
            if limit.cost in limits:
                too = " (throughput is a latency too)" if "throughput" in text else ""
                raise UserError(f"the budget names {limit.cost} twice{too}: {text!r}")
            limits[limit.cost] = limit
        if not limits:
            raise UserError(f"the budget is empty: {_EXAMPLE}")
        if all(loss in limits for loss in LOSSES):
            raise UserError(f"the budget limits both {' and '.join(LOSSES)}: choose one of them")
        return cls(tuple(limits.values()))

    def limit(self, cost: str) -> Limit | None:
        """Return the limit on one cost, or None."""
        return next((limit for limit in self.limits if limit.cost == cost), None)

    @property
    def loss(self) -> Limit | None:
        """The limit on what the network may lose, or None. With one, the cheapest engine is searched."""
        return next((limit for limit in self.limits if limit.cost in LOSSES), None)

    @property
    def costs(self) -> tuple[Limit, ...]:
        """The limits on costs."""
        return tuple(limit for limit in self.limits if limit.cost not in LOSSES)

    def __str__(self) -> str:
        return ",".join(map(str, self.limits))


def _limit_from_text(part: str, batch: int) -> Limit:
    cost, separator, amount = (piece.strip() for piece in part.partition("="))
    if not separator or cost not in _UNITS:
        raise UserError(f"budget {part!r} not understood: what can be limited is {', '.join(_UNITS)}; {_EXAMPLE}")
    match = _NUMBER.fullmatch(amount.removesuffix("/s") if cost == "throughput" else amount)
    if match is None:
        raise UserError(f"budget {part!r}: {amount!r} is no number above zero; {_EXAMPLE}")
    number, suffix = float(match["number"]), match["suffix"]
    if not 0 < number < math.inf:
        raise UserError(f"budget {part!r}: the limit must be above zero and finite")
    units: Mapping[str, float] = _UNITS[cost]
    if cost == "kl" and suffix == "x":
        raise UserError(f"budget {part!r}: the float model's divergence from itself is zero, so give kl in nats")
    if suffix not in units and suffix != "x" and not (suffix == "" and cost == "size"):
        known = ", ".join(filter(None, units)) or "no unit"
        raise UserError(
            f"budget {part!r}: unit {suffix!r} is not known for {cost}; use {known}, or x for a fraction of the float "
            "model"
        )
    value = number * units.get(suffix, 1.0)
    if cost == "throughput":
        cost, value = "latency", 1 / value if suffix == "x" else 1e3 * batch / value
    if not _SMALLEST <= value <= _LARGEST:
        raise UserError(f"budget {part!r}: the limit must be between {_SMALLEST:g} and {_LARGEST:g}")
    return Limit(cost, value, relative=suffix == "x")
