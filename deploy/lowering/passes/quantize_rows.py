"""Store embeddings, and heads that are tied to them, in their number types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from calib.formats.quantizers import QuantizedWeight
from calib.network.units import Unit
from deploy.lowering.export import OPSET
from deploy.lowering.passes.editing import (
    Array,
    constant,
    free_name,
    gather_nodes,
    new_node,
    remove_unused_constants,
    unit_nodes,
)
from deploy.lowering.passes.quantize_weights import stored_weight
from smpq.quantized.plan import QuantPlan

_CONTRIB = "com.microsoft"
_FAST_PRODUCTS = 4
"""Accuracy level of MatMulNBits whose kernels are fast: the input is quantised block by block to 8 bits inside."""
_LEAST_BLOCK = 16
_FOUR, _EIGHT = 4, 8


def quantize_rows(
    model: ir.Model, plan: QuantPlan, units: Sequence[Unit], newest_opset: int = OPSET, *, packed: bool = False
) -> int:
    """Replace the float weight of every unit of the plan whose rows are looked up; returns the number of weights.

    1. One set of integers is stored, whatever reads it. Its rows are `[N, K]`, with a scale for each row or for each
       block of it.
    2. Standard ONNX: one DequantizeLinear, for the look-up as it is and for the product transposed. No runtime fuses
       it into a Gather, so that all rows become floats on every run.
    3. `packed`: `GatherBlockQuantized` dequantises only the rows that are asked for. A head with blocks is a
       `MatMulNBits`, whose layout is the same; ONNX Runtime makes no such node of a transposed DequantizeLinear with
       blocks, but does with a scale for each row.
    """
    changed = 0
    for unit in units:
        if unit.path in plan.weights and unit.gathers:
            rows = _Rows(model, unit, plan.weights[unit.path], newest_opset)
            if not packed or rows.weight.bits not in (_FOUR, _EIGHT):
                rows.standard()
            elif rows.weight.block is None:
                rows.packed_by_row()
            else:
                rows.packed_by_block(rows.weight.block)
            changed += 1
    remove_unused_constants(model)
    return changed


@dataclass(frozen=True)
class _Rows:
    """The rows of one unit, and the graph they are put into."""

    model: ir.Model
    unit: Unit
    weight: QuantizedWeight
    newest_opset: int

    @property
    def name(self) -> str:
        return f"{self.unit.path}/weight"

    @property
    def first(self) -> ir.Node:
        """The node of the graph that reads the weight first."""
        readers = {*gather_nodes(self.model, self.unit), *unit_nodes(self.model, self.unit).values()}
        return next(node for node in self.model.graph if node in readers)

    def standard(self) -> None:
        weight = self.weight
        axis = 0 if weight.block is None else 1
        arrays = weight.value_array(), weight.scale_array(), weight.zero_point_array()
        dequantize = stored_weight(self.model, self.unit.path, weight, self.newest_opset, axis, arrays)
        self.model.graph.insert_before(self.first, dequantize)
        for node in gather_nodes(self.model, self.unit):
            node.replace_input_with(0, dequantize.outputs[0])
        self._multiply_by(dequantize)

    def packed_by_row(self) -> None:
        rows, width = self.weight.values.shape
        integers = self.weight.value_array()
        half = 0 if self.weight.bits == _FOUR else 1 << (_EIGHT - 1)
        stored = (ir.DataType.INT4 if self.weight.bits == _FOUR else ir.DataType.UINT8).numpy()
        data = constant(self.model, self.name, (integers + half).astype(stored))
        scale = constant(self.model, f"{data.name}/scale", self.weight.scale.detach().cpu().numpy().astype(np.float32))
        block = max(_LEAST_BLOCK, 1 << (width - 1).bit_length())
        self._look_up(data, self._reshaped(scale, [rows, 1]), block)
        if self.unit.calls:
            zero_points = constant(self.model, f"{data.name}/zero_point", np.full(rows, half).astype(stored))
            dequantize = new_node(
                "DequantizeLinear",
                [data, scale, zero_points],
                free_name(self.model, f"{data.name}/DQ"),
                ir.DataType.FLOAT,
                ir.Shape([rows, width]),
                {"axis": 0},
            )
            self.model.graph.insert_before(self.first, dequantize)
            self._multiply_by(dequantize)

    def packed_by_block(self, block: int) -> None:
        rows, width = self.weight.values.shape
        scale = self.weight.scale.detach().cpu().numpy().astype(np.float32)
        packed = _bytes(self.weight)
        scales = constant(self.model, f"{self.name}/scale", scale)
        heads = unit_nodes(self.model, self.unit).values()
        if not heads:
            self._look_up(constant(self.model, self.name, packed), scales, block)
            return
        data = constant(self.model, self.name, packed.reshape(rows, width // block, -1))
        self._look_up(self._reshaped(data, [rows, packed.shape[1]]), scales, block)
        sizes = {"K": width, "N": rows, "bits": self.weight.bits, "block_size": block}
        for node in heads:
            if node.op_type != "MatMul":
                raise ValueError(f"{self.unit.path}: a tied head with blocks needs a MatMul, not {node.op_type}")
            self._read_instead(node, data)
            inputs = [node.inputs[0], data, scales]
            self._replace(node, "MatMulNBits", inputs, {**sizes, "accuracy_level": _FAST_PRODUCTS})

    def _reshaped(self, value: ir.Value, shape: list[int]) -> ir.Value:
        sizes = constant(self.model, f"{value.name}/shape", np.array(shape, np.int64))
        name = free_name(self.model, f"{value.name}/Reshape")
        reshape = new_node("Reshape", [value, sizes], name, value.dtype or ir.DataType.FLOAT, ir.Shape(shape))
        self.model.graph.insert_before(self.first, reshape)
        return reshape.outputs[0]

    def _look_up(self, data: ir.Value, scales: ir.Value, block: int) -> None:
        attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": self.weight.bits}
        for node in gather_nodes(self.model, self.unit):
            self._replace(node, "GatherBlockQuantized", [data, node.inputs[1], scales], attributes)

    def _multiply_by(self, dequantize: ir.Node) -> None:
        rows, width = self.weight.values.shape
        heads = unit_nodes(self.model, self.unit).values()
        if heads:
            name = free_name(self.model, f"{self.name}/Transpose")
            transpose = ir.node(
                "Transpose",
                [dequantize.outputs[0]],
                {"perm": [1, 0]},
                outputs=[ir.Value(name=name, shape=ir.Shape([width, rows]), type=ir.TensorType(ir.DataType.FLOAT))],
                name=name,
            )
            self.model.graph.insert_after(dequantize, transpose)
            for node in heads:
                as_stored = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
                self._read_instead(node, dequantize.outputs[0] if as_stored else transpose.outputs[0])
            if not transpose.outputs[0].uses():
                self.model.graph.remove(transpose, safe=True)

    def _read_instead(self, head: ir.Node, value: ir.Value) -> None:
        """Let a head read another weight, and remove the Transpose of the float one where nothing else reads it."""
        before = head.inputs[1]
        head.replace_input_with(1, value)
        maker = before.producer() if before is not None else None
        if maker is not None and before is not None and not before.uses():
            self.model.graph.remove(maker, safe=True)

    def _replace(
        self, node: ir.Node, operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int]
    ) -> None:
        self.model.graph.opset_imports.setdefault(_CONTRIB, 1)
        name, result = str(node.name), node.outputs[0]
        made = ir.node(operator, inputs, attributes, domain=_CONTRIB, name=name, num_outputs=1)
        ir.convenience.replace_nodes_and_values(self.model.graph, node, [node], [made], [result], [made.outputs[0]])


def _bytes(weight: QuantizedWeight) -> Array:
    """Return rows of bytes: values without a sign around 2^(bits - 1), of 4 bits two a byte, the first one low."""
    values = (weight.value_array() + (1 << (weight.bits - 1))).astype(np.uint8)
    return values if weight.bits == _EIGHT else values[:, 0::2] | values[:, 1::2] << 4
