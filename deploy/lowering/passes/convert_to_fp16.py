"""Make half precision the float type of a model, as strongly typed builders want it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from calib.formats.format import FP32
from calib.network.units import Unit
from deploy.lowering.export import read_origins
from deploy.lowering.passes.editing import (
    Array,
    constant,
    free_name,
    gather_nodes,
    insert_after,
    new_node,
    remove_unused_constants,
    unit_nodes,
)
from smpq.quantized.plan import QuantPlan

_SMALLEST = 2.0**-24
"""Smallest positive half: a scale of zero is refused, and what it multiplies is noise."""

_MULTIPLIES = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Operators that a constant of zero may reach: what it adds is nothing."""

_TYPES = ("to", "dtype", "output_datatype")
"""Attributes that say the type of a result."""

_NUMBERS = ("value_float", "value_floats")
"""Attributes of a Constant, besides `value`."""
_MAY_BE_FLOAT = {None, ir.DataType.FLOAT}


class _Wide(NamedTuple):
    """Positions of the inputs and outputs of a node that stay float32."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def convert_to_fp16(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> int:
    """Convert float32 to float16 inside the model; returns the number of constants and casts changed or inserted.

    1. Inputs and outputs of the model stay float32, behind a Cast. Those that are half stay half.
    2. Constants become half, clamped to its range (a mask of -3e38 must not become infinite times zero). Scales do too:
       the type of a DequantizeLinear's result is that of its scale, and a Cast there would stand between the runtime
       and its integer kernel. One that is not zero does not become zero (`_half`), but for the weights of layers.
    3. A unit planned fp32 keeps float32 weights between two Casts. So does what the plan has in float32, as a whole
       where it was written out into several nodes, and with the Q/DQ pairs that it alone reads.
    4. Q/DQ pairs have one float type: what is quantised, its scale and what is dequantised are half. TensorRT 10.16
       builds no plan for SM87 where they differ (NVIDIA/TensorRT issue 4832).
    5. Left alone: integers and shapes. What an operator takes or gives as float32 and never as half, by its schema (the
       sizes of Resize, all of Range), stays float32, between casts.
    """
    units_of_fp32 = [unit for unit in units if plan.formats[unit.path] == FP32]
    full = {node for unit in units_of_fp32 for node in (*unit_nodes(model, unit).values(), *gather_nodes(model, unit))}
    full |= _planned_full(model, plan)
    wide = {node: _all_of(node) if node in full else _by_schema(model, node) for node in model.graph}
    ends = [value.dtype == ir.DataType.FLOAT for value in model.graph.outputs]
    _lift_constants(model, wide)
    changed = _convert_constants(model, wide)
    for node in list(model.graph):
        if node not in full:
            changed += _convert_attributes(node, wide[node])
        for index, value in enumerate(node.outputs):
            if value.dtype == ir.DataType.FLOAT and index not in wide[node].outputs:
                value.type = _of_half(value.type)
    for node in wide:  # in order, since casts are named as they are added
        changed += _surround(model, node, wide)
    changed += _cast_ends(model, wide, ends)
    remove_unused_constants(model)
    return changed


def _all_of(node: ir.Node) -> _Wide:
    inputs = [index for index, value in enumerate(node.inputs) if value is not None and value.dtype in _MAY_BE_FLOAT]
    outputs = [index for index, value in enumerate(node.outputs) if value.dtype in _MAY_BE_FLOAT]
    return _Wide(frozenset(inputs), frozenset(outputs))


def _planned_full(model: ir.Model, plan: QuantPlan) -> set[ir.Node]:
    """Return the nodes of the operators that the plan has in float32, and the pairs that these alone read.

    They are found by their values, whose names stay where a pass replaces a node. A node of which the exporter does not
    say what it is for, as a Split, is one with those beside it.
    """
    if not plan.in_float32:
        return set()
    origins = read_origins(model)
    names = {node: {origins.get(str(value.name), value.name) for value in node.outputs} for node in model.graph}
    full = {node for node, own in names.items() if not own.isdisjoint(plan.in_float32)}
    for node in (*names, *reversed(names)):
        if None in names[node] and node.outputs[0].dtype == ir.DataType.FLOAT:
            full |= {node} if full & {*node.predecessors(), *node.successors()} else set()
    for node in names:
        maker = node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
        if maker is not None and full.issuperset(node.successors()):
            full |= {node, maker}
    return full


def _lift_constants(model: ir.Model, wide: Mapping[ir.Node, _Wide]) -> None:
    """Let what stays float32 read constants of the graph in place of nodes, which become half."""
    for node in list(model.graph):
        array = _held(node) if node.op_type == "Constant" else None
        if array is None or array.dtype != np.float32:
            continue
        narrow = _narrow_uses(node.outputs[0], wide)
        uses = [use for use in node.outputs[0].uses() if use not in narrow]
        lifted = constant(model, f"{node.name}/float", array) if uses else None
        for use in uses:
            use.node.replace_input_with(use.idx, lifted)


def _by_schema(model: ir.Model, node: ir.Node) -> _Wide:
    """Return what an operator has as float32 and cannot have as half; of one that ONNX does not know, nothing."""
    version = node.version or model.graph.opset_imports.get(node.domain)
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)  # type: ignore[arg-type]
    except (onnx.defs.SchemaError, TypeError):
        return _Wide(frozenset(), frozenset())
    return _Wide(_without_half(schema.inputs, node.inputs), _without_half(schema.outputs, node.outputs))


def _without_half(formal: Sequence[Any], values: Sequence[ir.Value | None]) -> frozenset[int]:
    """Return the positions of the float32 values that must be float32; the last formal parameter may be variadic."""
    kinds = [formal[min(index, len(formal) - 1)].types for index in range(len(values))]
    return frozenset(
        index
        for index, (types, value) in enumerate(zip(kinds, values, strict=True))
        if value is not None and value.dtype == ir.DataType.FLOAT
        if "tensor(float)" in types and "tensor(float16)" not in types
    )


def _of_half(kind: Any) -> Any:
    """Return the type of a value with half in the place of float32: a tensor's, or that of a sequence of tensors."""
    if isinstance(kind, ir.SequenceType):
        return ir.SequenceType(_of_half(kind.elem_type))
    return ir.TensorType(ir.DataType.FLOAT16)


def _narrow_uses(value: ir.Value, wide: Mapping[ir.Node, _Wide]) -> list[Any]:
    """Return where a value is read as half."""
    return [use for use in value.uses() if use.node not in wide or use.idx not in wide[use.node].inputs]


def _convert_constants(model: ir.Model, wide: Mapping[ir.Node, _Wide]) -> int:
    changed = 0
    for value in list(model.graph.initializers.values()):
        if value.dtype != ir.DataType.FLOAT or value.const_value is None:
            continue
        uses = _narrow_uses(value, wide)
        if not uses:
            continue
        operators = {use.node.op_type for use in uses}
        array = value.const_value.numpy()
        if operators & {"QuantizeLinear", "DequantizeLinear"}:
            array = np.maximum(array, _SMALLEST)
        half = constant(model, f"{value.name}/half", _half(array, weight=operators <= _MULTIPLIES))
        for use in uses:
            use.node.replace_input_with(use.idx, half)
        changed += 1
    return changed


def _half(array: Array, *, weight: bool = False) -> Array:
    """Return constants as halves: finite ones stay finite, and those that are not zero stay so, unless they are a
    `weight`.

    What keeps a divisor or a logarithm from zero (1e-12 in `F.normalize`) would be zero: 0/0 is NaN. It becomes 2**-24,
    the nearest half. That is below the normal halves, which NVIDIA's half arithmetic keeps, and whose inverse is finite
    where CUDA divides halves, in float32. The smallest normal half, 2**-14, would change sums that hold in half:
    log(p + 1e-10) by 6 % of p = 0.001.
    """
    limit = float(np.finfo(np.float16).max)
    half = np.where(np.isfinite(array), np.clip(array, -limit, limit), array).astype(np.float16)
    lost = (half == 0) & (array != 0) & (not weight)
    return np.asarray(np.where(lost, np.copysign(_SMALLEST, array), half), np.float16)


def _convert_attributes(node: ir.Node, wide: _Wide) -> int:
    """Let a node that says the type of its result say half; returns the number of attributes changed."""
    changed = 0
    for name in _TYPES if not wide.outputs else ():
        if node.attributes.get_int(name, 0) == ir.DataType.FLOAT:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT16)
            changed += 1
    array = _held(node)
    if array is not None and array.dtype == np.float32:
        for name in _NUMBERS:
            node.attributes.pop(name, None)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(_half(array)))
        changed += 1
    return changed


def _held(node: ir.Node) -> Array | None:
    """Return the numbers that a node makes of nothing; None where it makes none, or none of floats."""
    if node.op_type not in ("Constant", "ConstantOfShape"):
        return None
    if "value" in node.attributes:
        return np.asarray(node.attributes["value"].as_tensor().numpy())
    numbers = [node.attributes[name].value for name in _NUMBERS if name in node.attributes]
    if numbers:
        return np.asarray(numbers[0], np.float32)
    return np.zeros(1, np.float32) if node.op_type == "ConstantOfShape" else None


def _surround(model: ir.Model, node: ir.Node, wide: Mapping[ir.Node, _Wide]) -> int:
    """Put casts in front of the inputs, and behind the outputs, of a node that stay float32."""
    casts = 0
    for index in sorted(wide[node].inputs):
        value = node.inputs[index]
        if value is None or value.const_value is not None or value.dtype == ir.DataType.FLOAT:
            continue
        cast = new_node(
            "Cast",
            [value],
            free_name(model, f"{node.name}/Cast"),
            ir.DataType.FLOAT,
            value.shape,
            {"to": ir.DataType.FLOAT},
        )
        model.graph.insert_before(node, cast)
        node.replace_input_with(index, cast.outputs[0])
        casts += 1
    for index in sorted(wide[node].outputs):
        result = node.outputs[index]
        # the caller, if the result is an output, wants float32 too
        readers = _narrow_uses(result, wide)
        if readers:
            _cast_for(model, result, readers, ir.DataType.FLOAT16)
            casts += 1
    return casts


def _cast_ends(model: ir.Model, wide: Mapping[ir.Node, _Wide], ends: Sequence[bool]) -> int:
    """Cast inputs to half, and the outputs that were float32 (`ends`) back."""
    casts = 0
    for value in model.graph.inputs:
        uses = _narrow_uses(value, wide)
        if value.dtype == ir.DataType.FLOAT and uses:
            _cast_for(model, value, uses, ir.DataType.FLOAT16)
            casts += 1
    for index, value in enumerate(model.graph.outputs):
        if not ends[index] or value.dtype != ir.DataType.FLOAT16:
            continue
        name = str(value.name)
        value.name = free_name(model, f"{name}/half")
        cast = new_node(
            "Cast", [value], free_name(model, f"{name}/Cast"), ir.DataType.FLOAT, value.shape, {"to": ir.DataType.FLOAT}
        )
        cast.outputs[0].name = name
        insert_after(model, value, [cast])
        model.graph.outputs[index] = cast.outputs[0]
        casts += 1
    return casts


def _cast_for(model: ir.Model, value: ir.Value, uses: Sequence[Any], dtype: ir.DataType) -> None:
    cast = new_node("Cast", [value], free_name(model, f"{value.name}/Cast"), dtype, value.shape, {"to": dtype})
    insert_after(model, value, [cast])
    for use in uses:
        use.node.replace_input_with(use.idx, cast.outputs[0])
