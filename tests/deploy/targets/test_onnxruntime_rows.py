"""What ONNX Runtime really makes of formats that its table leaves out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from calib.formats.format import FP16, Format
from tests.deploy.backends.graphs import Layer, one_layer
from tests.deploy.targets.test_target import W8A8

INTEGER_OPERATORS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


def found_in_onnxruntime(layer: Layer, path: Path) -> str:
    """What the optimised session computes the layer in, in the words of a capability table."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3  # saving an optimised model warns that it is for this machine only
    model = one_layer(layer, half=layer.format == FP16)
    onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization", "MatMulAddFusion"],
    )
    nodes = onnx.load(path).graph.node
    operators = {node.op_type for node in nodes}
    if operators & INTEGER_OPERATORS:
        return "native" if layer.format == W8A8 else "another format"
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    if products:
        bits = {attribute.name: attribute.i for attribute in products[0].attribute}["bits"]
        return "native" if bits == layer.format.weight_bits else "another format"
    if "DequantizeLinear" in operators:
        return "dequantized"
    if layer.format == FP16:
        return "another format" if "Cast" in operators else "native"
    return "native"


def test_a_scale_per_channel_runs_as_blocks_of_32(tmp_path):
    path = tmp_path / "optimised.onnx"
    assert found_in_onnxruntime(Layer("linear", Format.from_text("w4a16"), in_features=250), path) == "native"
    (node,) = [node for node in onnx.load(path).graph.node if node.op_type == "MatMulNBits"]
    assert {attribute.name: attribute.i for attribute in node.attribute}["block_size"] == 32


def test_int8_activations_with_a_relu_are_not_integer_in_onnxruntime(tmp_path):
    """Why the CPU target is affine: the symmetric scheme leaves a float convolution between Q and DQ."""
    common = {"integer_bias": True, "quantize_output": True, "relu": True}
    # A Relu is dropped only when the zero point is the smallest integer.
    affine = Layer("conv2d", W8A8, affine=True, zero_point=np.asarray(0, np.uint8), **common)
    assert found_in_onnxruntime(affine, tmp_path / "affine.onnx") == "native"
    symmetric = Layer("conv2d", W8A8, **common)
    assert found_in_onnxruntime(symmetric, tmp_path / "symmetric.onnx") == "dequantized"
