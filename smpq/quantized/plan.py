"""The abstract quantisation plan: which tensors and weights are quantised under a policy.

The fake-quantised PyTorch model and every ONNX lowering carry out the same plan, so that they agree by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx

from calib.calibrate import Calibration
from calib.formats.format import Format
from calib.formats.number_type import NumberType
from calib.formats.quantizers import ActivationQuantizer, QuantizedWeight, Scheme
from calib.network.attention import Attention
from calib.network.clips import clipped, is_clipped
from calib.network.graph import TracedModel
from calib.network.moves import is_averaged, keeps_grid
from calib.network.nodes import JOINS, operator_name
from calib.network.residual import ResidualAdd, residual_adds
from calib.network.units import Unit

_MATRIX = 2


@dataclass(frozen=True)
class QdqRules:
    """What a runtime wants quantised besides the inputs of integer layers.

    `outputs`: an integer convolution also writes integers, and whatever only adds or moves integer tensors does too
    (ONNX Runtime has no integer convolution with a float result); and so does an integer linear layer, of one row a
    sample and with a bias, that only integer layers read. `skips`: an add that an integer layer computes reads
    its other operand as integers when an integer layer makes or reads that one too (TensorRT then has one integer
    kernel for convolution and add). `integer_bias`: the bias of an integer convolution is an integer too, in units of
    input step times weight step (ONNX Runtime). `in_float32` are nodes of the graph that are computed in float32, where
    the runtime's float type is half precision, in the graph's order: values are kept under the text of the rules.
    """

    scheme: Scheme
    outputs: bool = False
    skips: bool = False
    integer_bias: bool = False
    in_float32: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizedTensor:
    """One quantise-dequantise pair: on a tensor for every consumer, or for the named consumers only.

    `tensor` and `consumers` are graph nodes; `consumers` is None at the source.
    """

    tensor: str
    quantizer: ActivationQuantizer
    consumers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class QuantPlan:
    """Everything that is quantised under one policy; unit path -> format, tensors, unit path -> weight.

    `gemms` are the calls of linear layers that add their bias in integers, `in_float32` what `QdqRules` says.
    """

    formats: Mapping[str, Format]
    tensors: tuple[QuantizedTensor, ...]
    weights: Mapping[str, QuantizedWeight]
    gemms: frozenset[str] = frozenset()
    in_float32: tuple[str, ...] = ()

    def input_quantizer(self, unit: Unit, call: int) -> ActivationQuantizer | None:
        """Return the quantiser of the tensor that one call of a unit reads, or None when it reads floats."""
        for entry in self.tensors:
            if entry.tensor == unit.inputs[call] and (entry.consumers is None or unit.calls[call] in entry.consumers):
                return entry.quantizer
        return None


def plan_from_policy(
    formats: Mapping[str, Format],
    units: tuple[Unit, ...],
    traced: TracedModel,
    calibration: Calibration,
    rules: QdqRules,
    float_joins: AbstractSet[str] = frozenset(),
    adds: Iterable[ResidualAdd] | None = None,
    gemms: frozenset[str] | None = None,
) -> QuantPlan:
    """Decide every quantised tensor and weight for one policy given by unit path, and the joins that it keeps in float.

    `adds` are the residual adds of the trace, and `gemms` its `gemm_calls`, which a pickled copy has to be given.

    1. The input of every unit whose format quantises activations is quantised, for that unit alone. The other rules are
       about units with integer activations (`NumberType.is_integer`).
    2. With `rules.outputs`, the result of an integer convolution (after its ReLU or clamp) is quantised at the source;
       so is every tensor that only adds, concatenates or moves tensors quantised at the source, if an integer unit
       reads it, averages alone read it, or it keeps its grid. The result of an integer linear layer of one row a sample
       is, if integer units alone read it, all on one grid; such a layer, and one whose float result nothing clips, adds
       its bias in integers (ONNX Runtime has no integer Gemm with a clip and a float result).
    3. With `rules.skips`, the skip of a residual add is quantised for the add alone, as it is for the integer units
       that read it, else with the bits of the layer that computes the add.
    4. A tensor that is quantised at the source needs no pair of its own at a consumer.
    5. The operands of the products of attention that the calibration knows (`calib.network.attention`) are quantised
       for these products, as the layers that read the result are: on the widest of their grids, if all have one.
    """
    read = {call: (unit, grid) for unit in units if (grid := formats[unit.path].activation) for call in unit.calls}
    integer_calls = {call: (unit, grid) for call, (unit, grid) in read.items() if grid.is_integer}
    sources: dict[str, ActivationQuantizer] = {}
    whole: set[str] = set()
    if rules.outputs:
        gemms = gemm_calls(traced, units) if gemms is None else gemms
        for node in traced.graph.nodes:
            of_rows = node.name in gemms and node.name in integer_calls
            grid = _grid_of_all_readers(clipped(node), integer_calls) if of_rows else None
            if of_rows and (grid is not None or not is_clipped(node)):
                whole.add(node.name)
            if grid is not None:
                sources[clipped(node).name] = calibration.quantizer(clipped(node).name, grid, rules.scheme)
            elif node.name not in float_joins:
                _quantize_at_source(node, integer_calls, calibration, rules, sources)
    edges: dict[tuple[str, ActivationQuantizer], list[str]] = {}
    for call, (unit, grid) in read.items():
        tensor = unit.inputs[unit.calls.index(call)]
        if tensor not in sources:
            edges.setdefault((tensor, calibration.quantizer(tensor, grid, rules.scheme)), []).append(call)
    if rules.skips:
        for add in residual_adds(traced, units) if adds is None else adds:
            if add.name not in float_joins and add.skip not in sources:
                _quantize_skip(add, integer_calls, calibration, rules, edges)
    for each in calibration.attention:
        _quantize_products(each, read, calibration, rules, sources, edges)
    tensors = [QuantizedTensor(tensor, quantizer) for tensor, quantizer in sources.items()]
    tensors += [QuantizedTensor(tensor, quantizer, tuple(calls)) for (tensor, quantizer), calls in edges.items()]
    weights = {
        unit.path: calibration.weight(unit, formats[unit.path]) for unit in units if not formats[unit.path].is_float
    }
    return QuantPlan(dict(formats), tuple(tensors), weights, frozenset(whole), rules.in_float32)


def gemm_calls(traced: TracedModel, units: Iterable[Unit]) -> frozenset[str]:
    """Return the calls of linear layers that multiply a matrix, one row a sample, and add a bias: ONNX's Gemm. Needs
    the shapes of the trace, which a pickled copy does not have.
    """
    calls = {call for unit in units if unit.operator == "linear" and unit.bias is not None for call in unit.calls}
    return frozenset(call for call in calls if traced.nodes[call].meta["val"].dim() == _MATRIX)


def _grid_of_all_readers(result: fx.Node, integer_calls: Mapping[str, tuple[Unit, NumberType]]) -> NumberType | None:
    """Return the grid on which integer units read a tensor, also where it was only moved; None where something else
    reads it too, or they differ.
    """
    grids: set[NumberType] = set()
    left = list(result.users)
    for user in left:
        if user.name in integer_calls:
            grids.add(integer_calls[user.name][1])
        elif keeps_grid(user):
            left += user.users
        else:
            return None
    return grids.pop() if len(grids) == 1 else None


def _quantize_at_source(
    node: fx.Node,
    integer_calls: Mapping[str, tuple[Unit, NumberType]],
    calibration: Calibration,
    rules: QdqRules,
    sources: dict[str, ActivationQuantizer],
) -> None:
    name = operator_name(node)
    if node.name in integer_calls and "conv" in integer_calls[node.name][0].operator:
        result = clipped(node)
        sources[result.name] = calibration.quantizer(result.name, integer_calls[node.name][1], rules.scheme)
    elif (
        name in JOINS
        and len(node.all_input_nodes) > 1
        and all(tensor.name in sources for tensor in node.all_input_nodes)
    ):
        result = clipped(node)
        grids = [integer_calls[user.name][1] for user in result.users if user.name in integer_calls]
        if not grids and is_averaged(result):
            grids = [sources[tensor.name].type for tensor in node.all_input_nodes]
        if grids:
            sources[result.name] = calibration.quantizer(result.name, _widest(grids), rules.scheme)
    elif node.all_input_nodes and node.all_input_nodes[0].name in sources and keeps_grid(node):
        sources[node.name] = sources[node.all_input_nodes[0].name]


def _quantize_skip(
    add: ResidualAdd,
    integer_calls: Mapping[str, tuple[Unit, NumberType]],
    calibration: Calibration,
    rules: QdqRules,
    edges: dict[tuple[str, ActivationQuantizer], list[str]],
) -> None:
    readers = [integer_calls[call][1] for call in add.readers if call in integer_calls]
    if add.layer in integer_calls and (readers or add.writer in integer_calls):
        grid = _widest(readers or [integer_calls[add.layer][1]])
        edges.setdefault((add.skip, calibration.quantizer(add.grid, grid, rules.scheme)), []).append(add.name)


def _quantize_products(
    attention: Attention,
    read: Mapping[str, tuple[Unit, NumberType]],
    calibration: Calibration,
    rules: QdqRules,
    sources: Mapping[str, ActivationQuantizer],
    edges: dict[tuple[str, ActivationQuantizer], list[str]],
) -> None:
    if not all(call in read for call in attention.readers):
        return
    grid = _widest(read[call][1] for call in attention.readers)
    for tensor, product in attention.operands:
        if tensor not in sources:
            quantizer = calibration.quantizer(tensor, grid, attention.scheme(tensor, rules.scheme))
            edges.setdefault((tensor, quantizer), []).append(product)


def _widest(grids: Iterable[NumberType]) -> NumberType:
    return max(grids, key=lambda grid: grid.bits)
