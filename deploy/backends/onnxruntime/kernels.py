"""What each unit became in the session: read from the optimised graph that ONNX Runtime writes on request."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from calib.formats.format import Format
from calib.network.units import Unit
from deploy.backends.base import UnitKernel
from deploy.backends.onnxruntime.engine import open_session
from deploy.backends.onnxruntime.record import find_record
from deploy.lowering.naming import call_names

_FLOAT = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Gather"}
_INTEGER = {
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "ConvInteger",
}
_WEIGHT_ONLY = {"MatMulNBits", "GatherBlockQuantized"}
_PRODUCTS = _FLOAT | _INTEGER | _WEIGHT_ONLY
_DEQUANTIZED = " + DequantizeLinear"
_STORED_SMALL = {"Conv" + _DEQUANTIZED, "FusedConv" + _DEQUANTIZED}
"""The best there is for a weight-only convolution."""
_ELEMENTWISE = {
    "Relu",
    "Clip",
    "Add",
    "Sum",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mul",
    "LeakyRelu",
    "Tanh",
    "Softplus",
    "Gelu",
}
_ADDED = re.compile(
    r"(?:^fused )|(?:_token_\d+$)|(?:/MatMulAddFusion/?$)|(?:/MatmulTransposeFusion/?$)|(?:_nchwc$)|(?:/duplicated$)"
)
"""What optimisers add to the name of a node that they replace."""

NOT_FOUND = "not found"


def unit_kernels(engine: Path, units: Sequence[Unit]) -> dict[str, str]:
    """Return unit path -> operator that its layer became (`QLinearConv`, `MatMulNBits`, `Conv`, ...).

    1. A float operator whose weight is still dequantised on every run says so: `Conv + DequantizeLinear`.
    2. A unit whose calls became different operators has all of them, joined by `, `.
    3. `not found` where no operator of the optimised graph can be traced back to the unit.

    Raises UserError when the engine or its `engine.json` is missing or damaged.
    """
    record = find_record(engine)
    with tempfile.TemporaryDirectory() as directory:
        optimized = Path(directory) / "optimized.onnx"
        open_session(engine, record, optimized=optimized)
        after = onnx.load(str(optimized), load_external_data=False).graph
    before = onnx.load(str(engine), load_external_data=False).graph
    products = _products_by_name(after)
    by_tensor = _products_by_tensor(after)
    makers = {output: node for node in after.node for output in node.output}
    found: dict[str, str] = {}
    for unit in units:
        names = set(call_names(unit).values())
        kernels = []
        for node in before.node:
            if node.name in names:
                product = products.get(node.name) or next(
                    (by_tensor[name] for name in _behind(before, node) if name in by_tensor), None
                )
                kernels.append(_describe(product, makers))
        found[unit.path] = ", ".join(dict.fromkeys(kernels)) or NOT_FOUND
    return found


def check_units(kernels: Mapping[str, str], formats: Mapping[str, Format]) -> list[UnitKernel]:
    """Compare the kernels with the plan, both by unit path.

    1. Integer activations need an integer kernel.
    2. Weight-only formats need `MatMulNBits` and `GatherBlockQuantized`, or a convolution that dequantises its weight.
    3. Float formats need a float kernel with a float weight: a float layer that the runtime quantised on its own is a
       disagreement too.
    4. Not for an engine built with `exact`: it has no integer kernels on purpose.
    """
    checks = []
    for path, planned in formats.items():
        kernel = kernels.get(path, NOT_FOUND)
        wanted = (
            _FLOAT if planned.is_float else _INTEGER if planned.quantizes_activation else _WEIGHT_ONLY | _STORED_SMALL
        )
        checks.append(UnitKernel(path, kernel, all(part in wanted for part in kernel.split(", "))))
    return checks


def _products_by_name(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {_plain(node.name): node for node in graph.node if node.op_type in _PRODUCTS}


def _products_by_tensor(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Products by the tensor they make. Convolutions in blocked layout have no other name: `<tensor>_nchwc`."""
    named = {
        _plain(node.name): node for node in graph.node if node.op_type in _PRODUCTS and node.name.endswith("_nchwc")
    }
    return {output: node for node in graph.node if node.op_type in _PRODUCTS for output in node.output} | named


def _plain(name: str) -> str:
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
    return name


def _behind(graph: onnx.GraphProto, node: onnx.NodeProto) -> Iterator[str]:
    """The tensor that a node makes, and those behind it that only element-wise operators separate: a fusion takes the
    last one's name.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for other in graph.node:
        for name in other.input:
            readers.setdefault(name, []).append(other)
    tensor = node.output[0]
    while True:
        yield tensor
        following = [reader for reader in readers.get(tensor, []) if reader.op_type in _ELEMENTWISE]
        if len(following) != 1:
            return
        tensor = following[0].output[0]


def _describe(product: onnx.NodeProto | None, makers: Mapping[str, onnx.NodeProto]) -> str:
    if product is None:
        return NOT_FOUND
    position = 0 if product.op_type == "Gather" else 1
    weight = makers.get(product.input[position]) if len(product.input) > 1 else None
    while weight is not None and weight.op_type in {"Transpose", "Cast", "Reshape"}:
        weight = makers.get(weight.input[0])
    if product.op_type in _FLOAT and weight is not None and weight.op_type == "DequantizeLinear":
        return f"{product.op_type}{_DEQUANTIZED}"
    return str(product.op_type)
