"""Take out clips that quantising makes needless: ONNX Runtime's integer kernels take none."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

_INFINITE = (-math.inf, math.inf)


def drop_clips(model: ir.Model) -> int:
    """Let each QuantizeLinear read what its Clip reads, where both ends of the clip are at the ends of the integers or
    beyond them; returns the number of clips dropped. Runs after tensors.

    1. Only a Clip with constant limits that nothing else reads. ONNX Runtime drops a Relu by itself, and a Clip where
       its limits and the integers' agree in float32, which rounding often prevents.
    2. The result is the same: QuantizeLinear saturates. The convolution in front then has an integer kernel.
    """
    dropped = 0
    for quantize in list(model.graph):
        value = quantize.inputs[0] if quantize.op_type == "QuantizeLinear" else None
        clip = value.producer() if value is not None else None
        if value is None or clip is None or clip.op_type != "Clip" or len(value.uses()) != 1:
            continue
        if any(output is value for output in model.graph.outputs) or not _is_needless(clip, quantize):
            continue
        quantize.replace_input_with(0, clip.inputs[0])
        model.graph.remove(clip, safe=True)
        dropped += 1
    return dropped


def _is_needless(clip: ir.Node, quantize: ir.Node) -> bool:
    scale, zero_point = _number(quantize.inputs[1]), _number(quantize.inputs[2])
    limits = [
        usual if index >= len(clip.inputs) or clip.inputs[index] is None else _number(clip.inputs[index])
        for index, usual in enumerate(_INFINITE, start=1)
    ]
    if scale is None or zero_point is None or None in limits:
        return False
    low, high = (float(np.rint(limit / scale)) + zero_point for limit in limits if limit is not None)
    stored = quantize.inputs[2].const_value.numpy().dtype  # type: ignore[union-attr]  # it is a number
    return low <= np.iinfo(stored).min and high >= np.iinfo(stored).max if stored.kind in "iu" else False


def _number(value: ir.Value | None) -> float | None:
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()).astype(np.float64))
