"""Run the traced model as if it were quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from calib.calibrate import Calibration
from calib.formats.format import Format
from calib.formats.number_type import NumberType
from calib.formats.quantizers import QuantizedWeight
from calib.network.execution import Edit, Edits
from calib.network.graph import TracedModel
from calib.network.residual import residual_adds
from calib.network.units import Unit
from smpq.quantized.plan import QdqRules, QuantPlan, gemm_calls, plan_from_policy

_LARGEST_BIAS = 2**31 - 1


class _IntegerBias:
    """Rounds a bias `[out]` to 32-bit integers in units of `step`; one that does not fit stays as it is, as in the
    engine. The last one is kept: it is the same in every batch.
    """

    def __init__(self, step: Tensor) -> None:
        self._step = step.double()
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, bias: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not bias:
            integers = torch.round(bias.double() / self._step)
            fits = float(integers.abs().max()) <= _LARGEST_BIAS
            self._last = bias, (integers * self._step).float() if fits else bias
        return self._last[1]


class FakeQuantizer:
    """Turns policies into edits of the graph; dequantised weights are computed once for each format.

    Equal edits are the same object, by which incremental evaluation sees what two policies share.
    """

    def __init__(self, traced: TracedModel, units: tuple[Unit, ...], calibration: Calibration, rules: QdqRules) -> None:
        """Keep what every policy shares."""
        self.traced = traced
        self.units = units
        self.calibration = calibration
        self.rules = rules
        self._adds = residual_adds(traced, units) if rules.skips else ()
        self._gemms = gemm_calls(traced, units) if rules.outputs else frozenset()
        self._weights: dict[tuple[str, str], Tensor] = {}
        self._biases: dict[tuple[int, float], tuple[QuantizedWeight, _IntegerBias]] = {}

    def plan(self, formats: Mapping[str, Format], float_joins: AbstractSet[str] = frozenset()) -> QuantPlan:
        """Return the plan of a policy given by unit path, and of the joins that it keeps in float."""
        known = self.traced, self.calibration, self.rules, float_joins, self._adds, self._gemms
        return plan_from_policy(formats, self.units, *known)

    def edits(self, plan: QuantPlan) -> Edits:
        """Return the changes to the float graph that simulate a plan."""
        sources: dict[str, Edit] = {}
        edges: dict[tuple[str, str], Edit] = {}
        for entry in plan.tensors:
            if entry.consumers is None:
                sources[entry.tensor] = entry.quantizer
            else:
                edges.update({(entry.tensor, consumer): entry.quantizer for consumer in entry.consumers})
        parameters = {
            unit.weight: self._weight(unit, plan.formats[unit.path]) for unit in self.units if unit.path in plan.weights
        }
        floats = [unit for unit in self.units if unit.path not in plan.weights]
        casts = {unit.weight: self._cast(unit, plan.formats[unit.path]) for unit in floats}
        parameters |= {name: weight for name, weight in casts.items() if weight is not None}
        if self.rules.integer_bias:
            edges |= self._bias_edits(plan)
        return Edits(sources, edges, parameters)

    def _bias_edits(self, plan: QuantPlan) -> dict[tuple[str, str], Edit]:
        edits: dict[tuple[str, str], Edit] = {}
        for unit in self.units:
            if unit.bias is None:
                continue
            for index, call in enumerate(unit.calls):
                if "conv" not in unit.operator and call not in plan.gemms:
                    continue
                quantizer = plan.input_quantizer(unit, index)
                if quantizer is not None and plan.formats[unit.path].reads_integers:
                    edits[unit.bias, call] = self._integer_bias(plan.weights[unit.path], quantizer.scale)
        return edits

    def _integer_bias(self, weight: QuantizedWeight, input_step: float) -> _IntegerBias:
        kept, bias = self._biases.get((id(weight), input_step), (None, None))
        if kept is not weight or bias is None:  # the weight is kept with its bias, so that its id stays its own
            bias = _IntegerBias(weight.scale * input_step)
            self._biases[id(weight), input_step] = (weight, bias)
        return bias

    def _cast(self, unit: Unit, chosen: Format) -> Tensor | None:
        """Return the weight in a type that is not quantised; None where the type changes nothing."""
        key = (unit.path, chosen.weight_key)
        if key not in self._weights:
            cast = chosen.weight.cast(self.traced.state[unit.weight])
            if cast is None:
                return None
            self._weights[key] = cast
        return self._weights[key]

    def _weight(self, unit: Unit, chosen: Format) -> Tensor:
        key = (unit.path, chosen.weight_key)
        if key not in self._weights:
            self._weights[key] = self.calibration.weight(unit, chosen).dequantize()
        return self._weights[key]

    def prepare(self, formats: Mapping[str, Sequence[Format]]) -> None:
        """Work out every range and weight that policies with these formats (by unit path) may need: what a pickled copy
        is made of.
        """
        self.calibration.prepare(self.units, formats, lambda: None)
        grids: set[NumberType] = set()
        for unit in self.units:
            own = {grid for chosen in formats[unit.path] if (grid := chosen.activation)}
            self.calibration.prepare_quantizers(unit.inputs, own, self.rules.scheme)
            grids |= {grid for grid in own if grid.is_integer}
        self.calibration.prepare_quantizers([add.grid for add in self._adds], grids, self.rules.scheme)
        self._prepare_attention(formats)
        if self.rules.outputs:
            self.calibration.prepare_quantizers(None, grids, self.rules.scheme)

    def _prepare_attention(self, formats: Mapping[str, Sequence[Format]]) -> None:
        chosen = {call: formats[unit.path] for unit in self.units for call in unit.calls}
        for each in self.calibration.attention:
            grids = {grid for call in each.readers for found in chosen[call] if (grid := found.activation)}
            for tensor, _ in each.operands:
                self.calibration.prepare_quantizers([tensor], grids, each.scheme(tensor, self.rules.scheme))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_weights": {}, "_biases": {}}  # a copy fills its own, quickly, from the integers

    def run(self, formats: Mapping[str, Format], inputs: Sequence[Tensor]) -> object:
        """Return the quantised model's output for one batch."""
        with torch.no_grad():
            return self.traced.run(inputs, self.edits(self.plan(formats)))
