"""How far a format moves the weight of a layer, weighed by a sensitivity: what methods need that see no activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    from calib.formats.format import Format
    from calib.network.units import Unit
    from smpq.methods.problem import SearchProblem
    from smpq.quantized.quantize import FakeQuantizer

_TIE = 1e-6
"""Of the largest score: what a format with fewer activation bits than another one with the same weights is behind."""


def weighed_errors(
    problem: SearchProblem, sensitivities: Mapping[str, npt.NDArray[Any]]
) -> dict[tuple[str, Format], list[float]]:
    """Return by move minus the squared errors of a group's weights times their sensitivities, which are `[samples]` by
    unit path.

    Formats with the same weights would be worth the same, whatever their activations: those with fewer bits come a
    millionth behind, so that a policy does not have them for nothing.
    """
    import numpy as np

    space, fake = problem.space, problem.fake_quantizer
    found = {
        (group.name, chosen): -np.sum(
            [squared_error(fake, unit, chosen) * sensitivities[unit.path] for unit in group.units], axis=0
        )
        for group in space.groups
        for chosen in space.formats[group.name]
        if chosen != space.reference
    }
    step = _TIE * max((abs(float(each.mean())) for each in found.values()), default=0.0)

    def behind(group: str, chosen: Format) -> int:
        return sum(other.weight_key == chosen.weight_key and other > chosen for other in space.formats[group])

    return {move: (each - step * behind(*move)).tolist() for move, each in found.items()}


def squared_error(fake: FakeQuantizer, unit: Unit, chosen: Format) -> float:
    """Return ||Q(W) - W||^2 of one layer's weight in a format."""
    weight = fake.traced.state[unit.weight]
    stored = chosen.weight.cast(weight) if chosen.is_float else fake.calibration.weight(unit, chosen).dequantize()
    return float((stored.double() - weight.double()).square().sum()) if stored is not None else 0.0
