"""How far a format moves the weight of a layer: what methods that weigh it by a sensitivity need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calib.formats.format import Format
    from calib.network.units import Unit
    from smpq.quantized.quantize import FakeQuantizer


def squared_error(fake: FakeQuantizer, unit: Unit, chosen: Format) -> float:
    """Return ||Q(W) - W||^2 of one layer's weight in a format."""
    weight = fake.traced.state[unit.weight]
    stored = chosen.weight.cast(weight) if chosen.is_float else fake.calibration.weight(unit, chosen).dequantize()
    return float((stored.double() - weight.double()).square().sum()) if stored is not None else 0.0
