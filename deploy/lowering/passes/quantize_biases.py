"""Give integer layers an integer bias, as ONNX Runtime's integer kernels want it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from calib.network.units import Unit
from deploy.lowering.passes.editing import constant, free_name, new_node, remove_unused_constants, unit_nodes
from smpq.quantized.plan import QuantPlan

_LARGEST = 2**31 - 1


def quantize_biases(model: ir.Model, plan: QuantPlan, units: Sequence[Unit]) -> int:
    """Store biases as INT32 behind a DequantizeLinear; returns the number of biases replaced. Runs after weights and
    tensors.

    1. Conv of units with integer weights and integer input, and Gemm of the calls in `plan.gemms`; the scale is input
       scale times weight scale, the zero point 0.
    2. Left alone: other linear layers, whose bias is a float Add behind a MatMul; a bias that does not fit 32 bits in
       these units, which keeps the layer in float: `check_units` tells.
    """
    changed = 0
    for unit in units:
        if unit.path not in plan.weights or not plan.formats[unit.path].reads_integers:
            continue
        for call, node in unit_nodes(model, unit).items():
            scale = _input_scale(node)
            if (node.op_type == "Conv" or call in plan.gemms) and scale is not None:
                changed += _quantize_bias(model, node, unit, plan, scale)
    remove_unused_constants(model)
    return changed


def _input_scale(node: ir.Node) -> float | None:
    """The scale of the pair in front of the node; None when it reads floats."""
    value = node.inputs[0]
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = producer.inputs[1]
    return float(scale.const_value.numpy()) if scale is not None and scale.const_value is not None else None


def _quantize_bias(model: ir.Model, node: ir.Node, unit: Unit, plan: QuantPlan, input_scale: float) -> bool:
    weight = plan.weights[unit.path]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return False
    floats = bias.const_value.numpy().astype(np.float64).reshape(-1)
    scale = np.asarray(np.float32(input_scale) * weight.scale_array(), np.float32)
    integers = np.rint(floats / scale.astype(np.float64))
    if (
        (scale.size != floats.size and 1 not in (scale.size, floats.size))
        or not np.all(scale >= np.finfo(np.float32).tiny)
        or np.abs(integers).max(initial=0) > _LARGEST
    ):
        return False
    value = constant(model, f"{node.name}/bias", integers.astype(np.int32))
    scales = constant(model, f"{value.name}/scale", scale)
    zero_points = constant(model, f"{value.name}/zero_point", np.zeros(scale.shape, np.int32))
    name = free_name(model, f"{value.name}/DQ")
    dequantize = new_node(
        "DequantizeLinear",
        [value, scales, zero_points],
        name,
        ir.DataType.FLOAT,
        ir.Shape(integers.shape),
        {"axis": 0} if scale.ndim else {},
    )
    model.graph.insert_before(node, dequantize)
    node.replace_input_with(2, dequantize.outputs[0])
    return True
