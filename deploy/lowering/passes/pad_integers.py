"""Pad integers as integers: ONNX Runtime leaves the pair around a Pad, and turns integers to floats and back."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.lowering.passes.editing import constant

_CONSTANT_VALUE = 2


def pad_integers(model: ir.Model) -> int:
    """Let each Pad between a DequantizeLinear and a QuantizeLinear of the same scale and zero point read and write the
    integers, and fill with the zero point; returns the number of them. Runs after tensors.

    Only where the Pad fills with zeros or copies, and nothing but the QuantizeLinear reads its result. The values are
    the same.
    """
    changed = 0
    for pad in list(model.graph):
        if pad.op_type != "Pad":
            continue
        source = pad.inputs[0].producer() if pad.inputs[0] is not None else None
        result, uses = pad.outputs[0], list(pad.outputs[0].uses())
        quantize = uses[0].node if len(uses) == 1 else None
        if source is None or quantize is None or result in model.graph.outputs:
            continue
        if (source.op_type, quantize.op_type) == ("DequantizeLinear", "QuantizeLinear") and _alike(source, quantize):
            changed += _pad(model, pad, source, quantize)
    return changed


def _pad(model: ir.Model, pad: ir.Node, source: ir.Node, quantize: ir.Node) -> bool:
    fill = pad.inputs[_CONSTANT_VALUE] if len(pad.inputs) > _CONSTANT_VALUE else None
    zero_point = quantize.inputs[2]
    if zero_point is None or zero_point.const_value is None:
        return False
    if pad.attributes.get_string("mode", "constant") == "constant":
        if fill is not None and (fill.const_value is None or np.any(fill.const_value.numpy() != 0)):
            return False
        filled = constant(model, f"{pad.name}/zero_point", zero_point.const_value.numpy().reshape(()))
        pad.resize_inputs(max(len(pad.inputs), _CONSTANT_VALUE + 1))
        pad.replace_input_with(_CONSTANT_VALUE, filled)
    pad.replace_input_with(0, source.inputs[0])
    integers = quantize.outputs[0]
    pad.outputs[0].type = integers.type
    for use in list(integers.uses()):
        use.node.replace_input_with(use.idx, pad.outputs[0])
    model.graph.remove(quantize, safe=True)
    if not source.outputs[0].uses() and source.outputs[0] not in model.graph.outputs:
        model.graph.remove(source, safe=True)
    return True


def _alike(first: ir.Node, second: ir.Node) -> bool:
    """Whether two nodes have the same scale and zero point, of one type."""
    for index in (1, 2):
        values = [node.inputs[index] for node in (first, second)]
        tensors = [value.const_value for value in values if value is not None and value.const_value is not None]
        if len(tensors) != 2 or tensors[0].dtype != tensors[1].dtype:
            return False
        if not np.array_equal(tensors[0].numpy(), tensors[1].numpy()):
            return False
    return True
