"""Whether half precision holds what a network computes."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence

from torch import fx
from torch.utils import _pytree as pytree

from calib.calibrate import Calibration
from calib.errors import UserError
from calib.finite import finite_values
from calib.network.nodes import module_path, operator_name
from calib.network.units import Unit

LARGEST = 65504.0
SMALLEST = 127 * 2.0**-24
"""Below this the step of 8-bit integers is below the smallest half."""

_FILLS = {"full", "full_like", "new_full", "fill", "scalar_tensor", "masked_fill", "where", "constant_pad_nd", "pad"}
_COMPUTES = {"mul", "div", "add", "sub", "rsub", "pow"}
_MULTIPLIES = {
    "mul", "div", "linear", "matmul", "mm", "bmm", "conv1d", "conv2d", "conv3d", "batch_norm",
    "_native_batch_norm_legit_no_training",
}  # fmt: skip
_SQUARES_INPUT, _SQUARES_RESULT = {"rms_norm"}, {"linalg_vector_norm", "norm", "std"}
"""Operators that are exported as others, the squares of what they read or give between them."""
_NEAR = 1e-5


def check_fp16_range(calibration: Calibration, units: Sequence[Unit]) -> None:
    """Raise UserError where a tensor does not fit half precision on the calibration data.

    1. Larger numbers become infinite in an engine whose float type is fp16, whatever format the layers have: those of
       inputs, and of any operator's result. A mask is none of them: large numbers that are filled in, or that a product
       with a constant gives at its largest, become the largest half, and stay out of what reads them as before.
    2. Inputs and results of layers that are smaller become zero.
    3. Constants that are multiplied by, or added, and that half does not hold.

    What half precision rounds is not looked at, as the angle of a position of many thousands.
    """
    around = {tensor: unit.path for unit in units for tensor in (*unit.inputs, *unit.calls)}
    masks: set[fx.Node] = set()
    folded: set[fx.Node] = set()
    """What depends on no input: the exporter works it out in float32."""
    for node in calibration.traced.graph.nodes:
        computed = node.op == "call_function" and folded.issuperset(node.all_input_nodes)
        if computed or node.name in calibration.traced.state:
            folded.add(node)
            continue
        seen = calibration.extremes(node.name)
        if seen is None:
            continue
        largest = max((abs(value) for value in seen if math.isfinite(value)), default=0.0)
        constants = list(_constants(calibration, node, folded))
        problem, square = _of_constants(node, constants, largest), _square(calibration, node, largest)
        is_mask = problem is None and bool(constants or not masks.isdisjoint(node.all_input_nodes))
        if largest > LARGEST and is_mask:
            masks.add(node)
        if largest > LARGEST and (not is_mask or node.name in around):
            problem = f"reaches {largest:.3g}"
        elif node.name in around and 0 < largest < SMALLEST:
            problem = f"stays below {largest:.3g}"
        elif square > LARGEST and not is_mask:
            problem = f"is computed from squares that reach {square:.3g}"
        if problem is not None:
            where = f"around {around[node.name]}" if node.name in around else _place(node)
            raise UserError(
                f"{node.name} {where} {problem} on the calibration data, and half precision holds {SMALLEST:.1g} to "
                f"{LARGEST:.0f}: scale the model's values there, or take a target that computes in fp32"
            )


def _constants(calibration: Calibration, node: fx.Node, folded: Container[fx.Node]) -> Iterator[float]:
    """Yield the magnitudes beyond half precision of constants that a node fills in or computes with."""
    numbers = pytree.tree_leaves((node.args, node.kwargs)) if operator_name(node) in _FILLS | _COMPUTES else []
    found = [abs(number) for number in numbers if isinstance(number, float | int)]
    state = calibration.traced.state
    for read in node.all_input_nodes:
        if read.name in state and state[read.name].is_floating_point():
            values = finite_values(state[read.name])
            found += [float(values.abs().max())] if values.numel() else []
        elif read in folded:
            found += map(abs, calibration.extremes(read.name) or ())
    yield from (number for number in found if LARGEST < number < math.inf)


def _of_constants(node: fx.Node, constants: Sequence[float], largest: float) -> str | None:
    """Return what is wrong with such constants; None where the result is a mask."""
    name, scalars = operator_name(node), any(isinstance(each, float | int) for each in node.args)
    if not constants or not (name in _MULTIPLIES or (name in _COMPUTES and scalars)):
        return None
    most = max(constants)
    return None if name == "mul" and abs(largest - most) <= _NEAR * most else f"is computed with {most:.3g}"


def _square(calibration: Calibration, node: fx.Node, result: float) -> float:
    """Return the largest square that the exported form of an operator computes in between, as far as is known."""
    name = operator_name(node)
    if name in _SQUARES_INPUT:
        low, high = calibration.extremes(node.all_input_nodes[0].name) or (0.0, 0.0)
        return max(-low, high) ** 2
    return result**2 if name in _SQUARES_RESULT else 0.0


def _place(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "(an input)"
    path = module_path(node)
    return f"in {path} ({operator_name(node)})" if path else f"({operator_name(node)})"
