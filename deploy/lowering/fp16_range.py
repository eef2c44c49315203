"""What half precision does not hold of what a network computes: kept in float32, or refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from calib.calibrate import Calibration
from calib.errors import UserError
from calib.finite import finite_values
from calib.network.nodes import module_path, operator_name
from calib.network.units import Unit
from smpq.quantized.plan import QdqRules

LARGEST = 65504.0
SMALLEST = 127 * 2.0**-24
"""Below this the step of 8-bit integers is below the smallest half."""

_FILLS = {"full", "full_like", "new_full", "fill", "scalar_tensor", "masked_fill", "where", "constant_pad_nd", "pad"}
_COMPUTES = {"mul", "div", "add", "sub", "rsub", "pow"}
_MULTIPLIES = {
    "mul", "div", "linear", "matmul", "mm", "bmm", "conv1d", "conv2d", "conv3d", "batch_norm",
    "_native_batch_norm_legit_no_training",
}  # fmt: skip
_NORMS = {"linalg_vector_norm", "norm"}
_SQUARES = {"rms_norm", "cosine_similarity", "std", "var", "std_mean", "var_mean"}
"""Operators that are exported as others, sums of squares between them."""
_FREE = 1024
"""A free size, where a sum over it is estimated."""
_NEAR = 1e-5
_NAMED = 3


def keeping_float32(
    rules: QdqRules, calibration: Calibration, units: Sequence[Unit], say: Callable[[str], None]
) -> QdqRules:
    """Return the rules of a target whose float type is half, with what stays in float32 there; `say` is told of it.

    Raises UserError as `beyond_half` does.
    """
    kept = beyond_half(calibration, units)
    if kept:
        names = list(dict.fromkeys(map(_place, kept)))
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        say(f"kept in float32, since half precision does not hold the values: {', '.join(names[:_NAMED])}{more}")
    return replace(rules, in_float32=tuple(node.name for node in kept))


def beyond_half(calibration: Calibration, units: Sequence[Unit]) -> list[fx.Node]:
    """Return the nodes that are computed in float32 since half precision does not hold what they compute on the
    calibration data, in the order of the graph. UserError where no node between layers can keep it.

    1. Larger numbers become infinite in an engine whose float type is fp16, whatever format the layers have: what makes
       and what reads them stays in float32. Where a layer reads them, or gives them, they are refused. A mask is none
       of them: large numbers that are filled in, or that a product with a constant gives at its largest, become the
       largest half, and stay out of what reads them as before; unless that is in float32.
    2. So does what is multiplied by, or added to, constants that half does not hold, and what computes squares that it
       does not hold; a layer's constants are refused.
    3. Inputs and results of layers that are smaller become zero, and are refused.

    What half precision rounds is not looked at, as the angle of a position of many thousands.
    """
    around = {tensor: unit.path for unit in units for tensor in (*unit.inputs, *unit.calls)}
    calls = {call for unit in units for call in unit.calls}
    masks: set[fx.Node] = set()
    large: set[fx.Node] = set()
    inside: set[fx.Node] = set()
    """What is only too large while it is computed."""
    folded: set[fx.Node] = set()
    """What depends on no input: the exporter works it out in float32."""
    for node in calibration.traced.graph.nodes:
        computed = node.op == "call_function" and folded.issuperset(node.all_input_nodes)
        if computed or node.name in calibration.traced.state:
            folded.add(node)
            continue
        if _square(calibration, node) > LARGEST:
            inside.add(node)
        seen = calibration.extremes(node.name)
        if seen is None:
            continue
        largest = max((abs(value) for value in seen if math.isfinite(value)), default=0.0)
        constants = list(_constants(calibration, node, folded))
        problem = _of_constants(node, constants, largest)
        read = set(node.all_input_nodes)
        is_mask = problem is None and bool(constants or masks & read) and not large & read
        if problem is not None:
            inside.add(node)
        if largest > LARGEST:
            (masks if is_mask else large).add(node)
        if largest > LARGEST and node.name in around:
            problem = f"reaches {largest:.3g}"
        elif node.name in around and 0 < largest < SMALLEST:
            problem = f"stays below {largest:.3g}"
        elif node.name not in calls:
            problem = None
        if problem is not None:
            raise UserError(
                f"{node.name} around {around[node.name]} {problem} on the calibration data, and half precision holds "
                f"{SMALLEST:.1g} to {LARGEST:.0f}: scale the model's values there, or take a target that computes in "
                "fp32"
            )
    kept = _kept(inside, large)
    while found := {mask for mask in masks - large if not kept.isdisjoint(mask.users)}:
        large |= found
        kept = _kept(inside, large)
    return [node for node in calibration.traced.graph.nodes if node in kept and node.op == "call_function"]


def _kept(inside: Iterable[fx.Node], large: Iterable[fx.Node]) -> set[fx.Node]:
    """Return what makes and reads large tensors. An operator with several results is one with what takes each."""
    nodes = {*inside, *(each for node in large for each in (node, *node.users))}
    makers = {node.all_input_nodes[0] if node.target is operator.getitem else node for node in nodes}
    return makers | {user for node in makers for user in node.users if user.target is operator.getitem}


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


def _square(calibration: Calibration, node: fx.Node) -> float:
    """Return what a sum of squares in the exported form of an operator may reach, as far as is known."""
    name, terms = operator_name(node), 1.0
    seen = [node] if name in _NORMS else node.all_input_nodes if name in _SQUARES else []
    if name in _SQUARES:
        result = node.meta["val"]
        terms = _size(seen[0].meta["val"]) / _size(result[0] if isinstance(result, tuple | list) else result)
    ends = [abs(end) for each in seen for end in calibration.extremes(each.name) or ()]
    return terms * max(ends, default=0.0) ** 2


def _size(tensor: Tensor) -> int:
    return math.prod(size if isinstance(size, int) else _FREE for size in tensor.shape)


def _place(node: fx.Node) -> str:
    path = module_path(node)
    return f"{path} ({operator_name(node)})" if path else operator_name(node)
