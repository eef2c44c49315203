"""Insert the quantise-dequantise pairs of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calib.errors import UserError
from calib.formats.quantizers import ActivationQuantizer
from calib.network.units import Unit
from deploy.lowering.export import read_aliases
from deploy.lowering.passes.editing import free_name, insert_after, new_node, scalar, unit_nodes
from smpq.quantized.plan import QuantPlan


@dataclass(frozen=True)
class QuantizedTensors:
    """How many pairs were inserted, and the tensors of the plan that the exported graph does not have as values of
    their own.
    """

    inserted: int
    merged: tuple[str, ...]


def quantize_tensors(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> QuantizedTensors:
    """Insert `tensor/Q` and `tensor/DQ` for every entry of `plan.tensors`.

    1. At the source: every consumer reads the dequantised value, and where the tensor is an output of the model, so
       does the caller, because the fake-quantised model returns it so. The output keeps its name; the float value
       becomes `<tensor>/float`.
    2. For named consumers: only their input is replaced. A unit's call is found by its node, whatever the exporter put
       between; any other consumer by the value it makes.
    3. The number type says which ONNX type holds the values (uint8 for unsigned integers, int8 for signed ones). A Clip
       (`tensor/Clip`) in front of Q holds values inside the limits of a type that has fewer bits.
    4. Entries with the same value and the same quantiser share one pair.
    5. Left alone: a tensor that the exporter removed because it equals another one, when that one is quantised alike;
       and a call merged into an equal call. They are listed in the result.
    """
    inserter = _Inserter(model, units)
    merged: list[str] = []
    # Sources first: what a consumer reads may then already be dequantised.
    for entry in plan.tensors:
        if entry.consumers is None and not inserter.at_source(entry.tensor, entry.quantizer):
            merged.append(entry.tensor)
    for entry in plan.tensors:
        for consumer in entry.consumers or ():
            if not inserter.at_consumer(entry.tensor, consumer, entry.quantizer):
                merged.append(entry.tensor)
    return QuantizedTensors(inserter.inserted, tuple(dict.fromkeys(merged)))


class _Inserter:
    def __init__(self, model: ir.Model, units: Sequence[Unit]) -> None:
        self._model = model
        self._aliases = read_aliases(model)
        self._calls = {call: node for unit in units for call, node in unit_nodes(model, unit).items()}
        self._is_call = {call for unit in units for call in unit.calls}
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        self._values = {str(value.name): value for value in values}
        self._sources: dict[int, ActivationQuantizer] = {}
        self._pairs: dict[tuple[int, ActivationQuantizer], ir.Value] = {}
        self.inserted = 0

    def at_source(self, tensor: str, quantizer: ActivationQuantizer) -> bool:
        """Quantise a value for all that read it; False when it is quantised already or is not in the graph."""
        value = self._values.get(self._aliases.get(tensor, tensor))
        if value is None or self._sources.get(id(value)) == quantizer:
            return False
        if id(value) in self._sources or tensor in self._aliases:
            raise UserError(
                f"{tensor} and {self._aliases.get(tensor, tensor)} are one value in the exported model, and the plan "
                "quantises them differently: "
                "compute it once in forward()"
            )
        readers = list(value.uses())
        is_output = any(output is value for output in self._model.graph.outputs)
        result = self._pair(value, tensor, quantizer)
        for use in readers:
            use.node.replace_input_with(use.idx, result)
        if is_output:
            self._swap_output(value, result)
        self._sources[id(value)] = quantizer
        return True

    def at_consumer(self, tensor: str, consumer: str, quantizer: ActivationQuantizer) -> bool:
        """Quantise a value for one consumer; False when the consumer is merged into another one."""
        if consumer in self._is_call:
            node, index = self._calls.get(consumer), 0
        else:
            node, index = self._find_reader(tensor, consumer)
        if node is None:
            return False
        value = node.inputs[index]
        if value is None:
            raise ValueError(f"{consumer} has no input to quantise")
        node.replace_input_with(index, self._pair(value, tensor, quantizer))
        return True

    def _find_reader(self, tensor: str, consumer: str) -> tuple[ir.Node | None, int]:
        result = self._values.get(self._aliases.get(consumer, consumer))
        value = self._values.get(self._aliases.get(tensor, tensor))
        node = result.producer() if result is not None else None
        if node is None or value is None:
            return None, 0
        index = next((index for index, read in enumerate(node.inputs) if read is value), None)
        return (node, index) if index is not None else (None, 0)

    def _pair(self, value: ir.Value, tensor: str, quantizer: ActivationQuantizer) -> ir.Value:
        """Return the dequantised value, from a pair that exists or a new one."""
        key = (id(value), quantizer)
        if key in self._pairs:
            return self._pairs[key]
        model = self._model
        stored = ir.DataType[quantizer.storage.onnx_type]
        scale = scalar(model, f"{tensor}/scale", quantizer.scale, np.float32)
        zero_point = scalar(model, f"{tensor}/zero_point", quantizer.zero_point, stored.numpy())
        nodes = []
        source = value
        if quantizer.bits < stored.bitwidth:
            low, high = quantizer.real_limits
            limits = [
                scalar(model, f"{tensor}/{end}", limit, np.float32) for end, limit in (("low", low), ("high", high))
            ]
            nodes.append(
                new_node("Clip", [value, *limits], free_name(model, f"{tensor}/Clip"), ir.DataType.FLOAT, value.shape)
            )
            source = nodes[-1].outputs[0]
        nodes.append(
            new_node(
                "QuantizeLinear", [source, scale, zero_point], free_name(model, f"{tensor}/Q"), stored, value.shape
            )
        )
        nodes.append(
            new_node(
                "DequantizeLinear",
                [nodes[-1].outputs[0], scale, zero_point],
                free_name(model, f"{tensor}/DQ"),
                ir.DataType.FLOAT,
                value.shape,
            )
        )
        insert_after(model, value, nodes)
        self._pairs[key] = nodes[-1].outputs[0]
        self.inserted += 1
        return self._pairs[key]

    def _swap_output(self, value: ir.Value, result: ir.Value) -> None:
        for index, output in enumerate(self._model.graph.outputs):
            if output is value:
                self._model.graph.outputs[index] = result
        name = str(value.name)
        value.name = free_name(self._model, f"{name}/float")
        result.name = name
