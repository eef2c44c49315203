"""Write linear layers with integer weights the way runtimes fuse them: MatMul and Add."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from calib.network.units import Unit
from deploy.lowering.passes.editing import constant, free_name, new_node, remove_unused_constants, unit_nodes
from smpq.quantized.plan import QuantPlan


def split_gemm(model: ir.Model, plan: QuantPlan, units: Sequence[Unit], *, integer_inputs: bool = False) -> int:
    """Turn `Gemm(x, W, b)` into `MatMul(x, W') + b` with `W'` as `[K, N]`; returns the number of nodes split.

    1. Units with integer weights and float inputs: no runtime fuses a DequantizeLinear into a Gemm with transB, and
       block scales are portable in `[K, N]` only.
    2. With `integer_inputs` (ONNX Runtime), also units with integer inputs, but for the calls of `plan.gemms`: its
       integer Gemm is not used where a Relu and then a float layer follow, and MatMul always has an integer kernel.
    3. The MatMul takes the Gemm's name, the Add that follows is called `<name>/Add`; the result keeps its name.
    4. A Gemm that scales (alpha, beta) or transposes its input is left alone; torch does not export one.
    """
    changed = 0
    for unit in units:
        if unit.path not in plan.weights or (plan.formats[unit.path].quantizes_activation and not integer_inputs):
            continue
        for call, node in unit_nodes(model, unit).items():
            if call not in plan.gemms:
                changed += _split(model, node)
    remove_unused_constants(model)
    return changed


def _split(model: ir.Model, gemm: ir.Node) -> bool:
    attributes = gemm.attributes
    plain = attributes.get_float("alpha", 1.0) == attributes.get_float("beta", 1.0) == 1.0 and not attributes.get_int(
        "transA", 0
    )
    data, weight = gemm.inputs[0], gemm.inputs[1]
    maker = weight.producer() if weight is not None else None
    turned = maker is not None and maker.op_type == "Transpose"  # of a weight that an embedding reads as well
    source = maker.inputs[0] if maker is not None and turned else weight
    if gemm.op_type != "Gemm" or not plain or source is None or source.const_value is None:
        return False
    stored = source.const_value.numpy()
    if bool(attributes.get_int("transB", 0)) != turned:
        stored = stored.T.copy()
    bias = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    result, name = gemm.outputs[0], str(gemm.name)
    output_type = result.dtype or ir.DataType.FLOAT
    transposed = constant(model, f"{name}/weight/float", stored)
    if bias is None:
        product = ir.node("MatMul", [data, transposed], name=name, num_outputs=1)
        replacement = [product]
    else:
        add_name = free_name(model, f"{name}/Add")
        product = new_node("MatMul", [data, transposed], name, output_type, result.shape)
        product.outputs[0].name = free_name(model, f"{name}/product")
        replacement = [product, ir.node("Add", [product.outputs[0], bias], name=add_name, num_outputs=1)]
    ir.convenience.replace_nodes_and_values(
        model.graph, gemm, [gemm], replacement, [result], [replacement[-1].outputs[0]]
    )
    return True
