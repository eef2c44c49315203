"""Targets by name, and capability tables against what onnxruntime really makes of a graph."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from calib.errors import UserError
from calib.formats import FP16, FP32, Format
from deploy.targets import (
    CONVOLUTIONS,
    LINEARS,
    OPERATORS,
    TARGET_NAMES,
    Capability,
    CapabilityRow,
    Target,
    capability,
    table,
    target_from_name,
)
from tests.deploy.backends.graphs import Layer, one_layer, weight_shape

W8A8 = Format(8, 8)
ONNXRUNTIME_FORMATS = (
    "fp32", "fp16", "w8a8", "w4a8", "w8a16", "w4a16",
    "w4a16b8", "w4a16b16", "w4a16b32", "w4a16b64", "w4a16b128", "w4a16b256", "w8a16b32",
)  # fmt: skip
INTEGER_OPERATORS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}


def status(target: str, operator: str, text: str, in_features: int = 256) -> str:
    return capability(target_from_name(target), operator, Format.from_text(text), in_features).status


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_every_target_offers_its_defaults_and_its_reference(name):
    target = target_from_name(name)
    assert target.name == name
    for format_ in (*target.default_formats, target.reference):
        for operator in OPERATORS:
            assert capability(target, operator, format_, 256).status == "native"


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_every_rule_of_a_table_decides_something(name):
    targets = [target_from_name(name, [one]) for one in ("sm75", "sm86")] if name == "tensorrt-rtx" else [target_from_name(name)]
    rests = ("a4", "a7", "a8", "a16", "a16b2", "a16b8", "a16b128", "a16b256")
    formats = [FP16, FP32, *(Format.from_text(f"w{bits}{rest}") for bits in range(2, 9) for rest in rests)]
    used = {capability(target, operator, format_, 256).note for target in targets for operator in OPERATORS for format_ in formats}
    assert not [row for target in targets for row in table(target) if row.note not in used]


def test_the_float_engine_and_the_schemes_differ():
    ours, nvidia = target_from_name("ort-cpu"), target_from_name("tensorrt-rtx")
    assert (ours.reference, ours.activation_scheme) == (FP32, "affine")
    assert (ours.quantize_outputs, ours.quantize_skips) == (True, False)
    assert (nvidia.reference, nvidia.activation_scheme) == (FP16, "symmetric")
    assert (nvidia.quantize_outputs, nvidia.quantize_skips) == (False, True)
    assert nvidia.compute_capabilities == ("sm86", "sm89", "sm120")


def test_unknown_target_lists_the_names():
    with pytest.raises(UserError, match="ort-cpu, tensorrt, tensorrt-rtx, simulate"):
        target_from_name("openvino")


def test_compute_capabilities():
    assert target_from_name("tensorrt-rtx", ["SM120", "sm86", "sm120"]).compute_capabilities == ("sm120", "sm86")
    with pytest.raises(UserError, match="sm75, sm80, sm86, sm89, sm120, sm121"):
        target_from_name("tensorrt-rtx", ["sm87"])
    with pytest.raises(UserError, match="takes no compute capability"):
        target_from_name("ort-cpu", ["sm86"])
    with pytest.raises(UserError, match="GPU of the machine"):
        target_from_name("tensorrt", ["sm86"])


def test_json_round_trips():
    target = target_from_name("tensorrt-rtx", ["sm89"])
    assert Target.from_json(target.to_json()) == target
    answer = capability(target, "linear", W8A8, 256)
    assert Capability.from_json(answer.to_json()) == answer
    for row in table(target):
        assert CapabilityRow.from_json(row.to_json()) == row
    with pytest.raises(UserError, match="schema version"):
        Target.from_json({"schema_version": 99, "name": "ort-cpu"})
    with pytest.raises(UserError, match="schema version"):
        Capability.from_json({})


def test_a_wrong_rule_is_a_bug():
    with pytest.raises(ValueError, match="wrong rule"):
        CapabilityRow.from_json({"operators": ["conv9d"], "formats": ["w8a8"], "status": "native", "note": ""})


def test_an_unknown_operator_stays_float():
    for name in TARGET_NAMES:
        target = target_from_name(name)
        assert capability(target, "lstm", target.reference, 256).status == "native"
        answer = capability(target, "lstm", W8A8, 256)
        assert answer.status == "refused"
        assert "lstm" in answer.note


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_a_block_must_divide_the_inputs(name):
    answer = capability(target_from_name(name), "linear", Format.from_text("w4a16b128"), 250)
    assert answer.status == "refused"
    assert "do not divide the 250 inputs" in answer.note


def test_one_single_block_is_no_block():
    assert status("tensorrt-rtx", "linear", "w4a16b128", 128) == "refused"
    assert status("tensorrt-rtx", "linear", "w4a16b128", 256) == "native"
    assert status("ort-cpu", "linear", "w4a16b128", 128) == "native"


def test_four_bits_come_in_pairs():
    target, w4 = target_from_name("tensorrt-rtx"), Format.from_text("w4a16")
    assert capability(target, "linear", w4, 33, out_features=33).status == "refused"
    assert capability(target, "linear", w4, 33, out_features=32).status == "dequantized"
    assert capability(target, "conv2d", Format.from_text("w8a16"), 33, out_features=33).status == "dequantized"


def test_the_worst_compute_capability_counts():
    both = target_from_name("tensorrt-rtx", ["sm75", "sm86"])
    assert capability(both, "conv2d", W8A8, 576).status == "dequantized"
    assert capability(both, "linear", W8A8, 256).status == "native"
    assert capability(both, "linear", Format.from_text("w4a16b32"), 256).status == "refused"
    assert any(row.compute_capabilities for row in table(both))
    assert not any(row.compute_capabilities for row in table(target_from_name("tensorrt-rtx")))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("text", ["w2a8", "w3a8", "w4a8", "w8a4", "w7a7", "w3a16", "w5a16"])
def test_odd_widths_are_for_simulation_only(operator, text):
    assert status("simulate", operator, text) == "native"
    for name in ("ort-cpu", "tensorrt", "tensorrt-rtx"):
        assert status(name, operator, text) == "refused"


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


@pytest.mark.parametrize(
    ("operator", "text"),
    # ONNX has no block scales along the whole reduction of a convolution, so there is nothing to build.
    [(operator, text) for operator in OPERATORS for text in ONNXRUNTIME_FORMATS if operator in LINEARS or "b" not in text],
)
def test_onnxruntime_agrees_with_its_table(operator, text, tmp_path):
    format_ = Format.from_text(text)
    integer = format_.quantizes_activation
    layer = Layer(operator, format_, affine=True, integer_bias=integer and operator != "linear_nd", quantize_output=integer)
    shape = weight_shape(layer)
    in_features = math.prod(shape[1:]) if operator in CONVOLUTIONS else shape[0]
    found = found_in_onnxruntime(layer, tmp_path / "optimised.onnx")
    answer = capability(target_from_name("ort-cpu"), operator, format_, in_features)
    if answer.status == "refused":
        assert found in ("another format", "dequantized")
    else:
        assert found == answer.status


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
