"""Small hand-made ONNX graphs: one quantisable layer, in the pattern that each runtime wants to see."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from calib.formats.format import Format
from deploy.targets.rules import CONVOLUTIONS

Array = npt.NDArray[np.generic]

CHANNELS = 64
GROUPS = 4
BATCH = 2
ROWS = 5


@dataclass
class Graph:
    """Collects nodes and constants. 1. A constant is named by its place in the graph. 2. A node's only output carries
    its name.
    """

    float_type: int = TensorProto.FLOAT
    opset: int = 21
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    @property
    def numpy_float(self) -> np.dtype[np.generic]:
        """The float type of the engine as numpy knows it."""
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.float_type))

    def constant(self, name: str, value: Array) -> str:
        """Add an initialiser and return its name."""
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, operator: str, name: str, inputs: list[str], **attributes: object) -> str:
        """Add a node with one output and return the output's name."""
        output = f"{name}:0"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=name, **attributes))
        return output

    def scale(self, name: str, value: Array | float) -> str:
        """Add a scale in the float type of the engine."""
        return self.constant(name, np.asarray(value, self.numpy_float))

    def quantize_pair(self, name: str, tensor: str, zero_point: Array) -> str:
        """Put QuantizeLinear and DequantizeLinear behind a tensor, one scale for the tensor."""
        scale = self.scale(f"{name}.scale", 0.05)
        zero = self.constant(f"{name}.zero_point", zero_point)
        integers = self.node("QuantizeLinear", f"{name}/Q", [tensor, scale, zero])
        return self.node("DequantizeLinear", f"{name}/DQ", [integers, scale, zero])

    def model(self, inputs: dict[str, tuple[int, ...]], outputs: list[str]) -> onnx.ModelProto:
        """Close the graph; the shape inference of ONNX completes what is not said here."""
        infos = [helper.make_tensor_value_info(name, self.float_type, shape) for name, shape in inputs.items()]
        results = [helper.make_tensor_value_info(name, self.float_type, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", infos, results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model)


@dataclass(frozen=True)
class Layer:
    """What one layer should look like; the defaults are legal everywhere, the traps are one change away from them."""

    operator: str
    format: Format
    affine: bool = False
    name: str = "unit"
    in_features: int = 256
    out_features: int = 256
    zero_point: Array | None = None
    weight_zero_point: int = 0
    integer_bias: bool = False
    quantize_output: bool = False
    relu: bool = False
    block_rows: int | None = None
    activation_format: Format | None = None

    @property
    def activation_zero_point(self) -> Array:
        """The zero point that also says the integer type of the activation."""
        if self.zero_point is not None:
            return self.zero_point
        return np.asarray(120, np.uint8) if self.affine else np.asarray(0, np.int8)


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the weight: [out, in / groups, *kernel] of a convolution, [in, out] of a MatMul."""
    shapes = {
        "conv1d": (CHANNELS, CHANNELS, 3),
        "depthwise_conv1d": (CHANNELS, 1, 3),
        "grouped_conv1d": (CHANNELS, CHANNELS // GROUPS, 3),
        "conv2d": (CHANNELS, CHANNELS, 3, 3),
        "depthwise_conv2d": (CHANNELS, 1, 3, 3),
        "grouped_conv2d": (CHANNELS, CHANNELS // GROUPS, 3, 3),
    }
    return shapes.get(layer.operator, (layer.in_features, layer.out_features))


def input_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the layer's input."""
    if layer.operator in CONVOLUTIONS:
        return (BATCH, CHANNELS, 16) if layer.operator.endswith("1d") else (BATCH, CHANNELS, 8, 8)
    return (BATCH, ROWS, layer.in_features) if layer.operator == "linear_nd" else (BATCH, layer.in_features)


def add_weight(graph: Graph, layer: Layer) -> str:
    """Add the layer's weight, dequantised where its format says so, and return the name of the float tensor."""
    shape, random = weight_shape(layer), np.random.default_rng(0)
    bits = layer.format.weight_bits
    if layer.format.is_float:
        return graph.constant(f"{layer.name}.weight", random.normal(0, 0.1, shape).astype(graph.numpy_float))
    limit = 2 ** (bits - 1)
    integers = random.integers(-limit + 1, limit, shape).astype(ml_dtypes.int4 if bits == 4 else np.int8)
    convolution = layer.operator in CONVOLUTIONS
    axis = 0 if convolution else 1
    if layer.format.weight_block is not None:
        axis = 1 if convolution else 0
        rows = layer.block_rows if layer.block_rows is not None else shape[axis] // layer.format.weight_block
        scales = np.full(tuple(rows if index == axis else size for index, size in enumerate(shape)), 0.01)
        attributes: dict[str, int] = {"axis": axis, "block_size": layer.format.weight_block}
    else:
        scales, attributes = np.full(shape[axis], 0.01), {"axis": axis}
    names = [
        graph.constant(f"{layer.name}.weight", integers),
        graph.scale(f"{layer.name}.weight.scale", scales),
        graph.constant(
            f"{layer.name}.weight.zero_point", np.full(scales.shape, layer.weight_zero_point, integers.dtype)
        ),
    ]
    return graph.node("DequantizeLinear", f"{layer.name}/DQw", names, **attributes)


def add_bias(graph: Graph, layer: Layer) -> str:
    """Add the bias: float, or integers behind a DequantizeLinear whose scale is the product of the two others."""
    size = weight_shape(layer)[0 if layer.operator in CONVOLUTIONS else 1]
    if not layer.integer_bias:
        return graph.constant(f"{layer.name}.bias", np.full(size, 0.1, graph.numpy_float))
    names = [
        graph.constant(f"{layer.name}.bias", np.full(size, 200, np.int32)),
        graph.scale(f"{layer.name}.bias.scale", np.full(size, 0.05 * 0.01)),
    ]
    return graph.node("DequantizeLinear", f"{layer.name}/DQb", names, axis=0)


def add_layer(graph: Graph, layer: Layer, tensor: str) -> str:
    """Add the layer behind `tensor` and return the name of its output."""
    if (layer.activation_format or layer.format).quantizes_activation:
        tensor = graph.quantize_pair(f"{layer.name}/x", tensor, layer.activation_zero_point)
    weight = add_weight(graph, layer)
    bias = add_bias(graph, layer)
    if layer.operator in CONVOLUTIONS:
        groups = {"depthwise": CHANNELS, "grouped": GROUPS}.get(layer.operator.partition("_")[0], 1)
        pads = [1, 1] if layer.operator.endswith("1d") else [1, 1, 1, 1]
        output = graph.node("Conv", layer.name, [tensor, weight, bias], group=groups, pads=pads)
    elif layer.operator == "linear" and layer.integer_bias:
        # The integer bias only exists inside a Gemm: an Add behind a MatMul is float.
        output = graph.node("Gemm", layer.name, [tensor, weight, bias])
    else:
        product = graph.node("MatMul", layer.name, [tensor, weight])
        output = graph.node("Add", f"{layer.name}/bias", [product, bias])
    if layer.relu:
        output = graph.node("Relu", f"{layer.name}/relu", [output])
    if layer.quantize_output:
        output = graph.quantize_pair(f"{layer.name}/y", output, layer.activation_zero_point)
    return output


def one_layer(layer: Layer, *, half: bool = False, opset: int = 21) -> onnx.ModelProto:
    """Return a model of this one layer, in single or in half precision."""
    graph = Graph(TensorProto.FLOAT16 if half else TensorProto.FLOAT, opset)
    output = add_layer(graph, layer, "x")
    return graph.model({"x": input_shape(layer)}, [output])
